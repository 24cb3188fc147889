"""One device's part of smoke, in a process of its own: speaks from the bundle and judges what is heard."""

import hashlib
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino as ov
import soundfile
from numpy.typing import NDArray
from omegaconf import DictConfig

from pipeline.judging.runtime_agreement import Record, agreement, record
from pipeline.judging.spectrogram import draw
from pipeline.stage import ROOT, PipelineError
from qwen3_tts_ov import Bundle, Model, Outcome, Speech, SpeechStream, Synthesizer, memory
from qwen3_tts_ov.text import seconds as slow_reading


class GateError(PipelineError):
    """What a device spoke is not fit for release; the message names the gate."""


def hear(bundle: Bundle, device: str, reference: Record, cfg: DictConfig, smoke: Path) -> dict[str, Any]:
    """Speaks twice whole and once streamed with one seed; writes WAV and spectrogram, returns what was measured.

    `reference` is what the CPU says with uncompressed weights. Raises GateError when a gate is missed, DeviceError when
    the device fails.
    """
    with tempfile.TemporaryDirectory(dir=smoke) as cache:
        cold = start(bundle.model, device, cfg, cache)[0].engine.compile_seconds
        synthesizer, request = start(bundle.model, device, cfg, cache)
        cached = synthesizer.engine.compile_seconds
        speech, again = synthesizer.speak(**request), synthesizer.speak(**request)
        waveform, outcome, chunks = listen(synthesizer.stream(**request))
        peak = memory.peak_bytes()  # before the codes are judged, with infer requests of their own

    if not (np.isfinite(speech.waveform).all() and np.isfinite(waveform).all()):
        raise GateError("samples that are not finite")  # 16 bits would hide them
    wav = smoke / f"{device.lower().replace('.', '-')}.wav"
    speech.save(wav)
    draw(speech.waveform, speech.sample_rate, wav.with_suffix(".png"))
    heard = judge_wav(wav, len(speech.codes), bundle, cfg)
    judge_length(speech, cfg)
    return {
        "wav": wav.name,
        "spectrogram": wav.with_suffix(".png").name,
        "frames": len(speech.codes),
        "stop_reason": speech.stop_reason,
        "codes_sha256": hashlib.sha256(speech.codes.astype("<i8").tobytes()).hexdigest(),
        "distinct_codes": len(np.unique(speech.codes)),
        "stream_difference": judge_runs(speech, again, outcome, waveform, cfg),
        **judge_codes(agreement(synthesizer, reference, **request), cfg),
        **heard,
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
    synthesizer, said = Synthesizer(model, device, cache_dir=cache), cfg.smoke
    request = {"text": said.text, "seed": cfg.seed, "max_frames": said.max_frames}
    if model.kind == "voice_design":
        request["instruct"] = said.instruct
    elif model.kind == "base":
        request["voice"] = synthesizer.voice_prompt(ROOT / said.reference, said.reference_text)
    return synthesizer, request


def reference_record(bundle: Bundle, ir: Path, cfg: DictConfig) -> Record:
    """The CPU's record with the weights in 16 bits, as the checkpoint stores them: the graphs of `export`."""
    graphs = {name: ir / f"{name}.xml" for name in bundle.components}
    uncompressed = replace(bundle.model, graphs=graphs, integer_weights=frozenset(), cache_key=None)
    synthesizer, request = start(uncompressed, "CPU", cfg, False)
    return record(synthesizer, **request)


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
    gates = cfg.smoke.gates
    samples, rate = soundfile.read(wav, dtype="float32")
    if frames < gates.min_frames:
        raise GateError(f"{wav.name}: {frames} frames, at least {gates.min_frames} make speech")
    if rate != bundle.sample_rate or samples.shape != (frames * bundle.samples_per_frame,):
        raise GateError(
            f"{wav.name}: {samples.shape} samples at {rate} Hz, {frames} frames make "
            f"{frames * bundle.samples_per_frame} at {bundle.sample_rate} Hz"
        )
    rms = 20 * float(np.log10(np.sqrt(np.mean(samples.astype(np.float64) ** 2)) + 1e-9))
    if rms < gates.min_rms_dbfs:
        raise GateError(f"{wav.name}: {rms:.1f} dBFS is silence, the gate is {gates.min_rms_dbfs} dBFS")
    full_scale = 1 - 2**-14  # of 16 bits, with room for rounding
    clipped = float(np.mean(np.abs(samples) >= full_scale))
    if clipped > gates.max_clipped_fraction:
        raise GateError(f"{wav.name}: {clipped:.2%} of the samples clip, the gate is {gates.max_clipped_fraction:.2%}")
    return {"rms_dbfs": rms, "clipped_fraction": clipped}


def judge_runs(
    speech: Speech, again: Speech, streamed: Outcome, waveform: NDArray[np.float32], cfg: DictConfig
) -> float:
    """The largest difference between streamed and whole waveform; raises GateError for that, or for other codes."""
    if not np.array_equal(speech.codes, again.codes):
        raise GateError("the same seed gave other codes the second time")
    if not np.array_equal(speech.codes, streamed.codes):
        raise GateError("the streamed run gave other codes than the whole one")
    gate = cfg.smoke.gates.max_stream_difference
    if waveform.shape != speech.waveform.shape:
        raise GateError(f"the streamed waveform has {waveform.size} samples, the whole one {speech.waveform.size}")
    difference = float(np.abs(speech.waveform - waveform).max())
    if difference > gate:
        raise GateError(f"streamed and whole waveform differ by {difference:.2g}, the gate is {gate:.2g}")
    return difference


def judge_length(speech: Speech, cfg: DictConfig) -> None:
    """Raises GateError unless the speech ended by itself after a time that its text can take.

    Synthetic weights never learnt when a sentence ends, so they are not asked.
    """
    if cfg.variant.source == "synthetic":
        return
    if speech.stop_reason != "eos":
        raise GateError(f"the speech did not end by itself within {cfg.smoke.max_frames} frames")
    least, most = (factor * slow_reading(cfg.smoke.text) for factor in cfg.smoke.gates.length)
    if not least <= speech.duration <= most:
        raise GateError(
            f"the speech takes {speech.duration:.2f} s; for its text the gate is {least:.2f} to {most:.2f} s"
        )


def judge_codes(agreement: dict[str, float], cfg: DictConfig) -> dict[str, float]:
    """Returns the agreement. Raises GateError where conf sets a gate for the precision and it is missed."""
    gate = cfg.smoke.gates.code_agreement.get(cfg.precision.name, 0.0)
    if agreement["code_agreement"] < gate:
        raise GateError(
            f"{agreement['code_agreement']:.1%} of the codes are those of uncompressed weights on the CPU, "
            f"the gate is {gate:.1%}"
        )
    return agreement
