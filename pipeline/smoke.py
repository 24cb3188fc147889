"""smoke: speaks from the bundle, with the runtime that users install, on every device, and judges what is heard.

Where the weights are real, a recogniser writes down what was said: speech that nobody understands is not correct. A
clone is compared with its reference.

A bundle of the npu layout is also heard through what stands in for an NPU, and a native one not on an NPU at all.

A required device that is missing or not correct fails the stage. An optional one is recorded: `passed`, `failed` or
`not_run`, the last two with the reason. A missed bound on quality is printed and reported, and fails nothing.
"""

import time
from pathlib import Path
from typing import Any

import soundfile
from omegaconf import DictConfig

from pipeline.judging.gates import Miss, missed, require, tell
from pipeline.judging.runtime_agreement import Record
from pipeline.judging.scorers import RATE, SCORERS, Floats, Material, Spoken, at_rate
from pipeline.judging.smoke_device import describe, hear, reference, reference_record
from pipeline.judging.spectrogram import draw
from pipeline.release.layout import SPOKEN
from pipeline.stage import PipelineError, alone, main, one_line, output, paths, report, track
from qwen3_tts_ov import Bundle, DeviceError, audio
from qwen3_tts_ov.bundle import verified
from qwen3_tts_ov.engine import devices
from qwen3_tts_ov.manifest import NATIVE, NPU


def run(cfg: DictConfig) -> None:
    """Writes artifacts/<variant>/<precision>/smoke: WAV and spectrogram of each device that spoke, and the report."""
    where, start = paths(cfg), time.perf_counter()
    bundle = verified(where.bundle)
    present = devices()
    spoken = candidates(cfg, present)
    exact = alone(reference_record, bundle, paths(cfg, NATIVE).ir, cfg) if spoken else None
    with output(where.smoke) as smoke:
        results: dict[str, Any] = {}
        for device in track(spoken, "smoke"):
            results[device] = try_device(device, present, cfg, bundle, exact, smoke)
            print(f"{device}: {summary(results[device])}")
            tell([Miss(**entry) for entry in results[device].get("missed", [])])
        report(
            smoke,
            {
                "bundle_id": bundle.manifest["bundle_id"],
                "variant": cfg.variant.name,
                "precision": cfg.precision.name,
                "seed": cfg.seed,
                "text": cfg.smoke.text,
                "devices": results,
                "measured": {"seconds": round(time.perf_counter() - start, 1)},
            },
            streaming(results),
        )


def candidates(cfg: DictConfig, present: dict[str, str]) -> list[str]:
    """Devices that conf/device names, then any others that OpenVINO lists; none for a layout of other programs."""
    if cfg.layout.name not in SPOKEN:
        return []
    named = [*cfg.device.required, *cfg.device.optional]
    if cfg.layout.name == NPU:
        named += cfg.device.stand_ins
    return named + [device for device in present if device.partition(".")[0] not in named]


def try_device(
    device: str, present: dict[str, str], cfg: DictConfig, bundle: Bundle, exact: Record | None, smoke: Path
) -> dict[str, Any]:
    """The result of one device. Raises PipelineError or DeviceError where a required one is missing or fails."""
    stands_in = device in cfg.device.stand_ins
    if not stands_in and not any(name.partition(".")[0] == device.partition(".")[0] for name in present):
        reason = f"OpenVINO lists no {device} on this machine, only {', '.join(sorted(present))}"
        if device in cfg.device.required:
            raise PipelineError(f"{device} is required by conf/device and missing: {reason}")
        return {"status": "not_run", "reason": reason}
    if device.partition(".")[0] == "NPU" and cfg.layout.name == NATIVE and device not in cfg.device.required:
        return {"status": "not_run", "reason": "an NPU takes the npu layout; name it in params.yaml"}
    try:
        # Alone, its peak memory is its own, and a driver that dies takes nothing else down.
        result = alone(hear, bundle, device, exact, cfg, smoke)
        samples, rate = soundfile.read(smoke / result["wav"], dtype="float32")
        picture = Path(result["wav"]).with_suffix(".png")
        draw(samples, rate, smoke / picture)
        material = material_of(samples, rate, bundle, cfg)
        result |= {"status": "passed", "spectrogram": picture.name} | words(material, bundle, cfg)
        found, misses = fidelity(device, material, cfg)
        result |= found | {"missed": result["missed"] + misses}
    except (DeviceError, PipelineError) as error:
        if device in cfg.device.required:
            raise
        result = {"status": "failed", "reason": one_line(error)}
    return result | describe(device, cfg)


def material_of(samples: Floats, rate: int, bundle: Bundle, cfg: DictConfig) -> Material:
    """What judges hear: smoke.text as `samples` [samples] and, of a base bundle, the recording that it cloned."""
    cloned: dict[str, Any] = {}
    if bundle.manifest["kind"] == "base":
        path, text = reference(cfg)
        cloned = {"reference": audio.load(path, RATE), "said": text, "in_context": text is not None}
    spoken = Spoken(cfg.smoke.language, cfg.smoke.text, at_rate(samples, rate), **cloned)
    return Material({"": spoken}, whisper=cfg.score.whisper)


def words(material: Material, bundle: Bundle, cfg: DictConfig) -> dict[str, Any]:
    """What a recogniser heard: `transcript` and `word_error`, or `no_transcript`, the reason why there is none.

    Raises GateError where more words are wrong than conf allows.
    """
    said, judge = cfg.smoke, SCORERS["word_error"]
    if cfg.variant.source == "synthetic":
        return {"no_transcript": "random weights speak no words"}
    if said.language not in bundle.manifest["languages"]:
        return {"no_transcript": f"the bundle does not speak {said.language}"}
    if reason := judge.lacks():
        return {"no_transcript": reason}
    (found,) = judge.judge(material).values()
    if isinstance(found, str):
        return {"no_transcript": found}
    transcript, bound = material.transcripts[""].strip(), said.bounds.correctness.word_error
    require(f"{said.text!r}, heard as {transcript!r}", {"word_error": found}, {"word_error": bound})
    return {"transcript": transcript, "word_error": round(found, 4)}


def fidelity(device: str, material: Material, cfg: DictConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How a clone keeps to its reference, and the bounds that it misses; nothing of random weights and other kinds.

    `speaker_similarity` and `leaked_words`, or `no_<figure>`, the reason why there is none.
    """
    if cfg.variant.source == "synthetic" or material.spoken[""].reference is None:
        return {}, []
    figures: dict[str, float] = {}
    absent: dict[str, str] = {}
    for name in ("speaker_similarity", "leaked_words"):
        value = SCORERS[name].lacks() or SCORERS[name].judge(material)[name]
        if isinstance(value, str):
            absent[f"no_{name}"] = value
        else:
            figures[name] = round(value, 4)
    bounds = {name: cfg.smoke.bounds.quality[name] for name in figures}
    return figures | absent, [miss.entry() for miss in missed(device, figures, bounds)]


def streaming(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The points of a plot: when each chunk of each device arrived, and how much audio there was by then."""
    passed = {device: result["measured"] for device, result in results.items() if "measured" in result}
    return [{"device": device, **chunk} for device, measured in passed.items() for chunk in measured["chunks"]]


def summary(result: dict[str, Any]) -> str:
    """One line about one device, for people."""
    if result["status"] != "passed":
        return f"{result['status']}: {result['reason']}"
    measured = result["measured"]
    return (
        f"passed: {result['frames']} frames ({result['stop_reason']}), {result['rms_dbfs']:.1f} dBFS, "
        f"first audio after {measured['first_audio_seconds']:.2f} s, "
        f"real-time factor {measured['real_time_factor']:.2f}"
    ) + "".join(
        f", {words} {result[key]!r}"
        for key, words in (("transcript", "heard as"), ("speaker_similarity", "similarity to its reference"))
        if key in result
    )


if __name__ == "__main__":
    main(run)
