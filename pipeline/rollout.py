"""rollout: speaks from the exported graphs, and records what goes through them, to calibrate and judge compression.

For every text of conf/rollout, sampled as the checkpoint's generation_config.json says: the talker's inputs and
outputs, the codes, the code predictor's likeliest codes after those, and the waveform. Compressed graphs are later fed
the same inputs (teacher forcing): free-running speech diverges after the first code that differs.
"""

import json
from collections.abc import Callable
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
    # Compiled separately: it takes a batch of rows, and the runtime's only one frame.
    predictor = teacher_forcing.compiled(where.ir / "code_predictor.xml").create_infer_request()
    likeliest = partial(teacher_forcing.likeliest, predictor)
    model = exported(cfg.variant.name, where.checkpoint, where.ir)
    synthesizer = Synthesizer(model, properties={"default": EXACT}, cache_dir=False)
    voice = choose_voice(synthesizer, said)
    spoken = {}
    read = [ROOT / said.reference] if model.kind == "base" else []
    with output(where.rollout, read) as folder:
        for split in SPLITS:
            known = model.config["talker_config"]["codec_language_id"]
            texts = {language: text for language, text in said[split].items() if language in known}
            arrays: Arrays = {}
            for number, language in enumerate(track(list(texts), f"speak to be {split}")):
                request = {"language": language, "seed": cfg.seed + number, "max_frames": said.frames, **voice}
                found = speak(synthesizer, likeliest, texts[language], request)
                arrays |= {f"{number}.{what}": np.ascontiguousarray(array) for what, array in found.items()}
            save_file(arrays, folder / f"{split}.safetensors")
            spoken[split] = texts
        report(folder, {"seed": cfg.seed, "frames": said.frames, "texts": spoken})


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


def choose_voice(synthesizer: Synthesizer, said: DictConfig) -> dict[str, Any]:
    """The voice for this kind of model, as conf/rollout has it; for custom_voice the first in alphabetical order."""
    model, engine = synthesizer.model, synthesizer.engine
    if model.kind == "custom_voice":
        return {"voice": model.speakers[0]}
    if model.kind == "voice_design":
        return {"instruct": said.instruct}
    recording = audio.load(ROOT / said.reference, model.sample_rate)
    # Without the silence that voice_prompt() appends: calibration and judging need speech.
    return {"voice": VoicePrompt(engine.x_vector(recording), engine.encode(recording), said.reference_text)}


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
