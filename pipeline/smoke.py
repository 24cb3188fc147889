"""smoke: speaks from the bundle, with the runtime that users install, on every device, and judges what is heard.

A required device that is missing or fails a gate fails the stage. An optional one is recorded: `passed`, `failed` or
`not_run`, the last two with the reason.
"""

import hashlib
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from omegaconf import DictConfig

from pipeline.stage import PipelineError, main, one_line, output, paths, report, track
from pipeline.tone import reference_tone
from qwen3_tts_ov import Bundle, DeviceError, Outcome, Speech, SpeechStream, Synthesizer
from qwen3_tts_ov.engine import devices


class GateError(PipelineError):
    """What a device spoke is not fit for release; the message names the gate."""


def run(cfg: DictConfig) -> None:
    """Writes artifacts/<variant>/<precision>/smoke: a WAV for each device that spoke, and the report."""
    where = paths(cfg)
    bundle = Bundle.load(where.bundle)
    present = devices()
    with output(where.smoke) as smoke:
        results: dict[str, Any] = {}
        for device in track(candidates(cfg, present), "smoke"):
            results[device] = try_device(bundle, device, present, cfg, smoke)
            print(f"{device}: {summary(results[device])}")
        report(
            smoke,
            {
                "bundle_id": bundle.manifest["bundle_id"],
                "variant": cfg.variant.name,
                "precision": cfg.precision.name,
                "seed": cfg.seed,
                "text": cfg.smoke.text,
                "devices": results,
            },
        )


def candidates(cfg: DictConfig, present: dict[str, str]) -> list[str]:
    """Devices that conf/device names, then those that OpenVINO lists beside them."""
    named = [*cfg.device.required, *cfg.device.optional]
    return named + [device for device in present if device.partition(".")[0] not in named]


def try_device(bundle: Bundle, device: str, present: dict[str, str], cfg: DictConfig, smoke: Path) -> dict[str, Any]:
    """The result of one device. Raises PipelineError or DeviceError where a required one is missing or fails."""
    if not any(name.partition(".")[0] == device.partition(".")[0] for name in present):
        reason = f"OpenVINO lists no {device} on this machine, only {', '.join(sorted(present))}"
        if device in cfg.device.required:
            raise PipelineError(f"{device} is required by conf/device and missing: {reason}")
        return {"status": "not_run", "reason": reason}
    try:
        return speak_on(bundle, device, cfg, smoke) | {"status": "passed", "full_name": full_name(device, present)}
    except (DeviceError, GateError) as error:
        if device in cfg.device.required:
            raise
        return {"status": "failed", "reason": one_line(error), "full_name": full_name(device, present)}


def full_name(device: str, present: dict[str, str]) -> str:
    """What the device is called; of several of a kind, OpenVINO takes the first when no number is given."""
    return next(name for key, name in present.items() if device in (key, key.partition(".")[0]))


def speak_on(bundle: Bundle, device: str, cfg: DictConfig, smoke: Path) -> dict[str, Any]:
    """Speaks twice whole and once streamed with one seed. Raises GateError where one of them is not what it must be."""
    start = time.perf_counter()
    synthesizer = Synthesizer(bundle, device, cache_dir=False)
    ready = time.perf_counter() - start
    whole, stream = requests(synthesizer, cfg)
    speech, again = whole(), whole()
    waveform, outcome, chunks = listen(stream())

    if not (np.isfinite(speech.waveform).all() and np.isfinite(waveform).all()):
        raise GateError("samples that are not finite")  # 16 bits would hide them
    wav = smoke / f"{device.lower().replace('.', '-')}.wav"
    speech.save(wav)
    heard = judge_wav(wav, len(speech.codes), bundle, cfg)
    difference = judge_runs(speech, again, outcome, waveform, cfg)
    return {
        "wav": wav.name,
        "frames": len(speech.codes),
        "stop_reason": speech.stop_reason,
        "codes_sha256": hashlib.sha256(speech.codes.astype("<i8").tobytes()).hexdigest(),
        "distinct_codes": len(np.unique(speech.codes)),
        "stream_difference": difference,
        **heard,
        "measured": {
            "ready_seconds": ready,
            "compile_seconds": dict(synthesizer.engine.compile_seconds),
            "first_audio_seconds": outcome.timings.first_audio,
            "real_time_factor": again.real_time_factor,
            "seconds_by_component": dict(again.timings.seconds),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "chunks": chunks,
        },
    }


def requests(synthesizer: Synthesizer, cfg: DictConfig) -> tuple[Callable[[], Speech], Callable[[], SpeechStream]]:
    """The same request twice, whole and streamed, in the one way that this kind of bundle speaks."""
    bundle, said = synthesizer.bundle, cfg.smoke
    common: dict[str, Any] = {"text": said.text, "seed": cfg.seed, "max_frames": said.max_frames}
    streamed: dict[str, Any] = common | {"first_chunk": said.first_chunk}
    if bundle.kind == "custom_voice":
        speaker = bundle.speakers[0]
        return (
            partial(synthesizer.custom_voice, speaker=speaker, **common),
            partial(synthesizer.stream_custom_voice, speaker=speaker, **streamed),
        )
    if bundle.kind == "voice_design":
        return (
            partial(synthesizer.voice_design, instruct=said.instruct, **common),
            partial(synthesizer.stream_voice_design, instruct=said.instruct, **streamed),
        )
    recording = (reference_tone(bundle.sample_rate), bundle.sample_rate)
    voice = synthesizer.voice_prompt(recording, said.reference_text)
    return (
        partial(synthesizer.clone, voice=voice, **common),
        partial(synthesizer.stream_clone, voice=voice, **streamed),
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


def summary(result: dict[str, Any]) -> str:
    """One line about one device, for people."""
    if result["status"] != "passed":
        return f"{result['status']}: {result['reason']}"
    measured = result["measured"]
    return (
        f"passed: {result['frames']} frames ({result['stop_reason']}), {result['rms_dbfs']:.1f} dBFS, "
        f"first audio after {measured['first_audio_seconds']:.2f} s, "
        f"real-time factor {measured['real_time_factor']:.2f}"
    )


if __name__ == "__main__":
    main(run)
