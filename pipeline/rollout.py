"""rollout: speaks from the exported graphs, and records what goes through them, to calibrate and judge compression.

For every text of conf/rollout, sampled as the checkpoint's generation_config.json says: the talker's inputs and
outputs, the codes, the code predictor's likeliest codes after those, and the waveform. Compressed graphs are later fed
the same inputs (teacher forcing): free-running speech diverges after the first code that differs.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from safetensors.numpy import save_file
from transformers import Qwen2Tokenizer

from pipeline.graphs import teacher_forcing
from pipeline.graphs.teacher_forcing import EXACT, JUDGED, Arrays, Codes, Floats
from pipeline.judging.runtime_agreement import record
from pipeline.stage import ROOT, main, output, paths, read_report, report, track
from qwen3_tts_ov import Model, Synthesizer, VoicePrompt, audio

SPLITS = ("calibration", "held_out")


def run(cfg: DictConfig) -> None:
    """Writes artifacts/<variant>/rollout: <split>.safetensors with arrays `<text>.<what>` (see `speak`)."""
    where, said = paths(cfg), cfg.rollout
    longest = said.frames if read_report(where.checkpoint)["source"] == "synthetic" else None
    # Compiled separately: it takes a batch of rows, and the runtime's only one frame.
    predictor = teacher_forcing.request(where.ir / "code_predictor.xml")
    likeliest = partial(teacher_forcing.likeliest, predictor)
    model = exported(cfg.variant.name, where.checkpoint, where.ir)
    synthesizer = Synthesizer(model, properties={"default": EXACT}, cache_dir=False)
    voices = choose_voices(synthesizer, said)
    spoken = {}
    read = [ROOT / said.reference] if model.kind == "base" else []
    with output(where.rollout, read) as folder:
        for split in SPLITS:
            texts = choose_texts(said[split], model.config["talker_config"]["codec_language_id"], said.texts)
            arrays: Arrays = {}
            for number, (language, text) in enumerate(track(texts, f"speak to be {split}")):
                request = {"language": language, "seed": cfg.seed + number, "max_frames": longest}
                request |= voices[number % len(voices)]
                found = speak(synthesizer, likeliest, text, request)
                arrays |= {f"{number}.{what}": np.ascontiguousarray(array) for what, array in found.items()}
            save_file(arrays, folder / f"{split}.safetensors")
            spoken[split] = texts
        report(folder, {"seed": cfg.seed, "frames": longest, "texts": spoken})


def choose_texts(texts: Mapping[str, Sequence[str]], known: Collection[str], least: int) -> list[tuple[str, str]]:
    """Pairs of language and text, one of each known language in turn until there are `least`, or none is left."""
    chosen: list[tuple[str, str]] = []
    spoken = {language: list(given) for language, given in texts.items() if language in known}
    while any(spoken.values()) and (not chosen or len(chosen) < least):
        chosen += [(language, given.pop(0)) for language, given in spoken.items() if given]
    return chosen


def exported(name: str, checkpoint: Path, ir: Path) -> Model:
    """The graphs of `export` with the files of their checkpoint, for the runtime to speak with."""

    def read(file: str) -> Any:
        return json.loads((checkpoint / file).read_text(encoding="utf-8"))

    speech = read("speech_tokenizer/config.json")
    return Model(
        name=name,
        graphs={component: ir / f"{component}.xml" for component in read_report(ir)["components"]},
        config=read("config.json"),
        generation=read("generation_config.json"),
        tokenizer=Qwen2Tokenizer.from_pretrained(str(checkpoint), local_files_only=True).backend_tokenizer,
        sample_rate=speech["output_sample_rate"],
        samples_per_frame=speech["decode_upsample_rate"],
    )


def choose_voices(synthesizer: Synthesizer, said: DictConfig) -> list[dict[str, Any]]:
    """The voices that speak the texts in turn: all of a custom_voice model, or the one that conf/rollout has."""
    model, engine = synthesizer.model, synthesizer.engine
    if model.kind == "custom_voice":
        return [{"voice": speaker} for speaker in model.speakers]
    if model.kind == "voice_design":
        return [{"instruct": said.instruct}]
    recording = audio.load(ROOT / said.reference, model.sample_rate)
    # Without the silence that voice_prompt() appends: calibration and judging need speech.
    return [{"voice": VoicePrompt(engine.x_vector(recording), engine.encode(recording), said.reference_text)}]


def speak(
    synthesizer: Synthesizer, likeliest: Callable[[Floats, Codes], Codes], text: str, request: dict[str, Any]
) -> Arrays:
    """One text spoken. Returns, of `steps` talker calls (the first is the prefill) and `frames` frames:

    `inputs` [prefill + steps - 1, width] and `logits` [steps, vocabulary] of the talker, `hidden` [frames, width] and
    `codes` [frames, groups], `likeliest` [judged frames, groups - 1] (see teacher_forcing.py), `waveform` [samples].
    """
    made = record(synthesizer, text, **request)
    hidden = np.concatenate(made.hidden)[: len(made.codes)]
    judged = zip(hidden[JUDGED], made.codes[JUDGED], strict=True)
    with synthesizer.engine.session() as session:  # in one call and, when cloning, without the reference before it
        waveform = session.decode(made.codes)
    return {
        "inputs": np.concatenate(made.fed),
        "logits": np.stack(made.logits),
        "hidden": hidden,
        "codes": made.codes,
        "likeliest": np.stack([likeliest(*frame) for frame in judged]),
        "waveform": waveform,
    }


if __name__ == "__main__":
    main(run)
