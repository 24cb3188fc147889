"""One device's part of smoke, in a process of its own: speaks from the bundle and judges what is heard."""

import hashlib
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino as ov
import soundfile
from numpy.typing import NDArray
from omegaconf import DictConfig

from pipeline.judging.gates import GateError, Miss, missed, require
from pipeline.judging.runtime_agreement import Record, agreement, record
from pipeline.stage import ROOT
from qwen3_tts_ov import Bundle, Outcome, Speech, SpeechStream, Synthesizer
from qwen3_tts_ov.text import seconds as slow_reading

Requests = tuple[Callable[..., Speech], Callable[..., SpeechStream]]


def hear(bundle: Bundle, device: str, reference: Record, cfg: DictConfig, smoke: Path) -> dict[str, Any]:
    """Speaks twice whole and once streamed with one seed; writes the WAV, returns what was measured.

    `reference` is what the CPU says from uncompressed weights. Raises GateError where a bound on correctness is missed,
    DeviceError where the device fails; what misses a bound on quality is listed.
    """
    with tempfile.TemporaryDirectory(dir=smoke) as cache:
        cold = start(bundle, device, cfg, cache)[0].engine.compile_seconds
        synthesizer, whole, stream = start(bundle, device, cfg, cache)
        cached = synthesizer.engine.compile_seconds
        speech, again = whole(), whole()
        waveform, outcome, chunks = listen(stream())

    if not (np.isfinite(speech.waveform).all() and np.isfinite(waveform).all()):
        raise GateError("some samples are not finite")  # 16 bits would hide them
    wav = smoke / f"{device.lower().replace('.', '-')}.wav"
    speech.save(wav)
    heard = judge_wav(wav, len(speech.codes), bundle, cfg)
    difference = judge_runs(speech, again, outcome, waveform, cfg)
    agreed = agreement(synthesizer, whole, reference)
    return {
        "wav": wav.name,
        "frames": len(speech.codes),
        "stop_reason": speech.stop_reason,
        "codes_sha256": hashlib.sha256(speech.codes.astype("<i8").tobytes()).hexdigest(),
        "distinct_codes": len(np.unique(speech.codes)),
        "stream_difference": difference,
        **agreed,
        **heard,
        "missed": [miss.entry() for miss in judge_quality(device, speech, agreed["code_agreement"], cfg)],
        "measured": {
            "compile_cold_seconds": cold,
            "compile_cached_seconds": cached,
            "first_audio_seconds": outcome.timings.first_audio,
            "real_time_factor": again.real_time_factor,
            "seconds_by_component": dict(again.timings.seconds),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "chunks": chunks,
        },
    }


def start(bundle: Bundle, device: str, cfg: DictConfig, cache: str | Literal[False]) -> tuple[Synthesizer, *Requests]:
    """A synthesizer and its requests, a clone's encoders compiled and used as well."""
    synthesizer = Synthesizer(bundle, device, cache_dir=cache)
    return synthesizer, *requests(synthesizer, cfg)


def reference_record(bundle: Bundle, ir: Path, cfg: DictConfig) -> Record:
    """What the CPU says with the weights as the checkpoint stores them, in 16 bits: the graphs of `export`."""
    components = bundle.manifest["components"]
    exported = {name: components[name] | {"xml": str((ir / f"{name}.xml").resolve())} for name in bundle.components}
    uncompressed = replace(bundle, manifest=bundle.manifest | {"components": components | exported})
    synthesizer, whole, _ = start(uncompressed, "CPU", cfg, False)
    return record(synthesizer, whole)


def describe(device: str) -> dict[str, str | None]:
    """Full name, driver and plugin of a device; the CPU has no driver."""
    core = ov.Core()
    present = [name for name in core.available_devices if device in (name, name.partition(".")[0])]
    name = present[0] if present else device  # of several of a kind, OpenVINO takes the first
    keys = [key for key in core.get_property(name, "SUPPORTED_PROPERTIES") if key.endswith("DRIVER_VERSION")]
    return {
        "full_name": core.get_property(name, "FULL_DEVICE_NAME"),
        "driver": str(core.get_property(name, keys[0])) if keys else None,
        "plugin": next(iter(core.get_versions(name).values())).build_number,
    }


def requests(synthesizer: Synthesizer, cfg: DictConfig) -> Requests:
    """The same request twice, whole and streamed, in the one way that this kind of bundle speaks."""
    bundle, said = synthesizer.bundle, cfg.smoke
    common: dict[str, Any] = {"text": said.text, "seed": cfg.seed, "max_frames": said.max_frames}
    if bundle.kind == "custom_voice":
        speaker = bundle.speakers[0]
        return (
            partial(synthesizer.custom_voice, speaker=speaker, **common),
            partial(synthesizer.stream_custom_voice, speaker=speaker, **common),
        )
    if bundle.kind == "voice_design":
        return (
            partial(synthesizer.voice_design, instruct=said.instruct, **common),
            partial(synthesizer.stream_voice_design, instruct=said.instruct, **common),
        )
    voice = synthesizer.voice_prompt(ROOT / said.reference, said.reference_text)
    return (
        partial(synthesizer.clone, voice=voice, **common),
        partial(synthesizer.stream_clone, voice=voice, **common),
    )


def listen(stream: SpeechStream) -> tuple[NDArray[np.float32], Outcome, list[dict[str, float]]]:
    """The waveform [samples] and outcome of a stream, and when each chunk arrived against how much audio there was."""
    chunks, arrivals, samples = [], [], 0
    start = time.perf_counter()
    for chunk in stream:
        samples += len(chunk)
        chunks.append(chunk)
        arrivals.append({"audio_seconds": samples / stream.sample_rate, "seconds": time.perf_counter() - start})
    return np.concatenate([*chunks, np.empty(0, np.float32)]), stream.outcome, arrivals


def judge_wav(wav: Path, frames: int, bundle: Bundle, cfg: DictConfig) -> dict[str, float]:
    """Level and clipping of the file as it was written. Raises GateError."""
    bounds = cfg.smoke.bounds.correctness
    samples, rate = soundfile.read(wav, dtype="float32")
    if rate != bundle.sample_rate or samples.shape != (frames * bundle.samples_per_frame,):
        raise GateError(
            f"{wav.name}: {samples.shape} samples at {rate} Hz; {frames} frames make "
            f"{frames * bundle.samples_per_frame} at {bundle.sample_rate} Hz"
        )
    full_scale = 1 - 2**-14  # of 16 bits, with room for rounding
    heard = {
        "rms_dbfs": 20 * float(np.log10(np.sqrt(np.mean(samples.astype(np.float64) ** 2)) + 1e-9)),
        "clipped_fraction": float(np.mean(np.abs(samples) >= full_scale)),
    }
    require(wav.name, {"frames": frames} | heard, {name: bounds[name] for name in ("frames", *heard)})
    return heard


def judge_runs(
    speech: Speech, again: Speech, streamed: Outcome, waveform: NDArray[np.float32], cfg: DictConfig
) -> float:
    """The largest difference between streamed and whole waveform. Raises GateError for that, or for different codes."""
    if not np.array_equal(speech.codes, again.codes):
        raise GateError("the same seed gave different codes the second time")
    if not np.array_equal(speech.codes, streamed.codes):
        raise GateError("the streamed run gave different codes than the whole one")
    if waveform.shape != speech.waveform.shape:
        raise GateError(f"the streamed waveform has {waveform.size} samples, the whole one {speech.waveform.size}")
    difference = float(np.abs(speech.waveform - waveform).max())
    bound = cfg.smoke.bounds.correctness.stream_difference
    require("streamed and whole waveform", {"stream_difference": difference}, {"stream_difference": bound})
    return difference


def judge_quality(device: str, speech: Speech, code_agreement: float, cfg: DictConfig) -> list[Miss]:
    """The bounds on quality that a device misses.

    Speech must end by itself after a time that its text can take. Synthetic weights never learnt when a sentence ends,
    so they are not asked.
    """
    quality = cfg.smoke.bounds.quality
    bounds, figures, absent = {}, {"code_agreement": code_agreement}, {}
    if cfg.precision.name in quality.code_agreement:
        bounds["code_agreement"] = quality.code_agreement[cfg.precision.name]
    if cfg.variant.source != "synthetic":
        bounds["length"] = list(quality.length)
        if speech.stop_reason == "eos":
            figures["length"] = speech.duration / slow_reading(cfg.smoke.text)
        else:
            absent["length"] = f"the speech did not end by itself within {cfg.smoke.max_frames} frames"
    return missed(device, figures, bounds, absent)
