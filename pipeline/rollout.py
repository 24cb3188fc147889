"""rollout: lets the exported graphs speak, and records what goes through them, to calibrate and to judge compression.

For every text of conf/rollout, sampled as the checkpoint's generation_config.json says: what the talker was fed and
what it answered, the codes, the code predictor's likeliest codes after those, and the waveform. Compressed graphs are
later fed the same (teacher forcing): speech that runs freely parts after the first other code, and then judges nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from omegaconf import DictConfig
from safetensors.numpy import save_file
from transformers import Qwen2Tokenizer

from pipeline.graphs import teacher_forcing
from pipeline.graphs.teacher_forcing import JUDGED, Arrays, compiled
from pipeline.stage import ROOT, main, output, paths, read_report, report, track
from qwen3_tts_ov import audio, prompt
from qwen3_tts_ov.engine import Codes, Floats, Session
from qwen3_tts_ov.generation import Request, Utterance
from qwen3_tts_ov.prompt import Prompt
from qwen3_tts_ov.sampling import Sampling
from qwen3_tts_ov.voice import VoicePrompt

SPLITS = ("calibration", "held_out")


def run(cfg: DictConfig) -> None:
    """Writes artifacts/<variant>/rollout: <split>.safetensors with arrays `<text>.<what>` (see `speak`)."""
    where = paths(cfg)
    kind = read_report(where.model)["kind"]
    names = [f"{name}.xml" for name in read_report(where.ir)["components"]]
    # The largest first: a graph is in memory twice while it is compiled.
    xmls = sorted((where.ir / name for name in names), key=lambda xml: -xml.with_suffix(".bin").stat().st_size)
    graphs = {xml.stem: compiled(xml) for xml in xmls}
    requests = {name: graph.create_infer_request() for name, graph in graphs.items()}
    session = Recorder(requests, [xml.with_suffix(".bin").resolve() for xml in xmls])
    config = json.loads((where.checkpoint / "config.json").read_text(encoding="utf-8"))
    generation = json.loads((where.checkpoint / "generation_config.json").read_text(encoding="utf-8"))
    voice = reference_voice(graphs, where.checkpoint, cfg.rollout) if kind == "base" else None
    plan = planner(kind, config, where.checkpoint, cfg.rollout, voice)
    known = config["talker_config"]["codec_language_id"]
    spoken = {}
    with output(where.rollout) as folder:
        for split in SPLITS:
            texts = {language: text for language, text in cfg.rollout[split].items() if language in known}
            arrays: Arrays = {}
            for number, language in enumerate(track(list(texts), f"speak to be {split}")):
                request = Request(
                    pieces=[(plan(text=texts[language], language=language), cfg.rollout.frames)],
                    voice=voice,
                    seed=cfg.seed + number,
                    talker=Sampling.talker(generation),
                    code_predictor=Sampling.code_predictor(generation),
                    max_frames=None,
                )
                found = speak(session, config, request)
                arrays |= {f"{number}.{what}": np.ascontiguousarray(array) for what, array in found.items()}
            save_file(arrays, folder / f"{split}.safetensors")
            spoken[split] = texts
        report(folder, {"seed": cfg.seed, "frames": cfg.rollout.frames, "texts": spoken})


def reference_voice(graphs: Mapping[str, ov.CompiledModel], checkpoint: Path, said: DictConfig) -> VoicePrompt:
    """The voice of the recording that conf/rollout names."""
    speech = json.loads((checkpoint / "speech_tokenizer/config.json").read_text(encoding="utf-8"))
    recording = {"audio": audio.load(ROOT / said.reference, speech["input_sample_rate"])[None]}
    x_vector, codes = (graphs[name](recording)[0][0] for name in ("speaker_encoder", "speech_encoder"))
    return VoicePrompt(x_vector, codes, said.reference_text)


def planner(
    kind: str, config: dict[str, Any], checkpoint: Path, said: DictConfig, voice: VoicePrompt | None
) -> Callable[..., Prompt]:
    """How a checkpoint of this kind is asked to speak a `text` in a `language`."""
    tokenizer = Qwen2Tokenizer.from_pretrained(str(checkpoint), local_files_only=True)

    def tokenize(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    if kind == "custom_voice":
        speaker = min(config["talker_config"]["spk_id"])
        return partial(prompt.custom_voice, config, tokenize, speaker=speaker)
    if voice is None:
        return partial(prompt.voice_design, config, tokenize, instruct=said.instruct)
    assert voice.codes is not None
    reference = {"reference_text": said.reference_text, "reference_frames": len(voice.codes)}
    return partial(prompt.clone_icl, config, tokenize, **reference)


class Recorder(Session):
    """A session that keeps what the talker was fed, and what it answered, since `start`."""

    def start(self) -> None:
        self.inputs: list[Floats] = []
        self.logits: list[Floats] = []
        self.hidden: list[Floats] = []

    def talk(self, embeddings: Floats) -> tuple[Floats, Floats]:
        logits, hidden = super().talk(embeddings)
        self.inputs.append(embeddings.copy())
        self.logits.append(logits.copy())
        self.hidden.append(hidden[0].copy())
        return logits, hidden

    def likeliest(self, hidden: Floats, codes: Codes) -> Codes:
        return teacher_forcing.likeliest(self._requests["code_predictor"], hidden, codes)


def speak(session: Recorder, config: dict[str, Any], request: Request) -> Arrays:
    """One text spoken. Returns, of `steps` talker calls (the first is the prefill) and `frames` frames:

    `inputs` [prefill + steps - 1, width] and `logits` [steps, vocabulary] of the talker, `hidden` [frames, width] and
    `codes` [frames, groups], `likeliest` [judged frames, groups - 1] (see teacher_forcing.py), `waveform` [samples].
    """
    session.start()
    ((planned, limit),) = request.pieces
    codes = np.stack(list(Utterance(session, config, request, planned, limit)))
    hidden = np.concatenate(session.hidden)[: len(codes)]
    judged = zip(hidden[JUDGED], codes[JUDGED], strict=True)
    session.new_utterance()  # a clone's decoder has heard the reference; the waveform is judged without
    return {
        "inputs": np.concatenate(session.inputs),
        "logits": np.stack(session.logits),
        "hidden": hidden,
        "codes": codes,
        "likeliest": np.stack([session.likeliest(*frame) for frame in judged]),
        "waveform": session.decode(codes),
    }


if __name__ == "__main__":
    main(run)
