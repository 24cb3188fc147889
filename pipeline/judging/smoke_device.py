"""One device's part of smoke, in a process of its own: speaks from the bundle and judges what is heard."""

import hashlib
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from numpy.typing import NDArray
from omegaconf import DictConfig

from pipeline.judging.gates import GateError, Miss, missed, require
from pipeline.judging.runtime_agreement import Record, agreement, record
from pipeline.stage import ROOT
from qwen3_tts_ov import Bundle, Model, Outcome, Speech, SpeechStream, Synthesizer, engine, memory
from qwen3_tts_ov.text import seconds as slow_reading


def hear(bundle: Bundle, device: str, reference: Record, cfg: DictConfig, smoke: Path) -> dict[str, Any]:
    """Speaks twice whole and once streamed with one seed; writes the WAV, returns what was measured.

    `reference` is what the CPU says from uncompressed weights. Raises GateError where a bound on correctness is missed,
    DeviceError where the device fails; what misses a bound on quality is listed.
    """
    with tempfile.TemporaryDirectory(dir=smoke) as cache:
        cold = start(bundle.model, device, cfg, cache)[0].engine.compile_seconds
        synthesizer, request = start(bundle.model, device, cfg, cache)
        cached = synthesizer.engine.compile_seconds
        speech, again = synthesizer.speak(**request), synthesizer.speak(**request)
        waveform, outcome, chunks = listen(synthesizer.stream(**request))
        peak = memory.peak_bytes()  # before the codes are judged, with infer requests of their own

    if not (np.isfinite(speech.waveform).all() and np.isfinite(waveform).all()):
        raise GateError("some samples are not finite")  # 16 bits would hide them
    wav = smoke / f"{device.lower().replace('.', '-').replace(' ', '-')}.wav"
    speech.save(wav)
    heard = judge_wav(wav, len(speech.codes), bundle, cfg)
    difference = judge_runs(speech, again, outcome, waveform, cfg)
    agreed = agreement(synthesizer, reference, **request)
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
            "peak_memory_bytes": peak,
            "chunks": chunks,
        },
    }


def start(
    model: Model, device: str, cfg: DictConfig, cache: str | Literal[False]
) -> tuple[Synthesizer, dict[str, Any]]:
    """A synthesizer and the request for it; a base model's encoders are compiled and used as well."""
    stand_in, said = cfg.device.stand_ins.get(device, {"device": device, "properties": {}}), cfg.smoke
    synthesizer = Synthesizer(model, stand_in["device"], {"default": stand_in["properties"]}, cache)
    known = said.language in model.config["talker_config"]["codec_language_id"]
    language = said.language if known else "auto"
    request = {"text": said.text, "language": language, "seed": cfg.seed, "max_frames": said.max_frames}
    if model.kind == "voice_design":
        request["instruct"] = said.instruct
    elif model.kind == "base":
        request["voice"] = synthesizer.voice_prompt(*reference(cfg))
    return synthesizer, request


def reference(cfg: DictConfig) -> tuple[Path, str | None]:
    """The recording that is cloned, and what is said in it: the variant's first one, or that of conf/smoke."""
    if recordings := cfg.variant.get("recordings"):
        return ROOT / Path(recordings[0].path).expanduser(), recordings[0].get("text")
    return ROOT / cfg.smoke.reference, cfg.smoke.reference_text


def reference_record(bundle: Bundle, ir: Path, cfg: DictConfig) -> Record:
    """The CPU's record with the weights in 16 bits, as the checkpoint stores them: the graphs of `export`."""
    graphs = {name: ir / f"{name}.xml" for name in bundle.components}
    uncompressed = replace(bundle.model, graphs=graphs, integer_weights=frozenset(), cache_key=None, sizes=None)
    synthesizer, request = start(uncompressed, "CPU", cfg, False)
    return record(synthesizer, **request)


def describe(device: str, cfg: DictConfig) -> dict[str, str | None]:
    """Full name, driver and plugin of a device; the CPU has no driver, and a stand-in only a plugin."""
    if device in cfg.device.stand_ins:
        return engine.describe(cfg.device.stand_ins[device].device) | {"full_name": device, "driver": None}
    return engine.describe(device)


def listen(stream: SpeechStream) -> tuple[NDArray[np.float32], Outcome, list[dict[str, float]]]:
    """The waveform [samples] and outcome of a stream; for each chunk, the audio so far and the time it arrived."""
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
