"""What speaking costs on this machine: times, memory, and beside them what it costs just to read the weights.

A frame reads every weight of the talker once, and those of the code predictor once for each of its passes. Reading as
many bytes on the same threads is the time that no arithmetic goes below, unless the processor's cache holds them.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..engine import user_cache
from ..speech import Outcome, SpeechStream
from ..synthesizer import Synthesizer
from ..voice import VoicePrompt

if TYPE_CHECKING:
    import openvino as ov

TEXT = "The quick brown fox jumps over the lazy dog, and then it rests for a while in the afternoon sun."
COMPONENTS = ("talker", "code_predictor", "speech_decoder")
READ = ("talker", "code_predictor")  # those that memory bounds; the decoder's convolutions are bound by arithmetic


def measure(
    bundle: Bundle,
    device: str | Mapping[str, str],
    properties: Mapping[str, Mapping[str, Any]] | None,
    text: str,
    rounds: int,
    frames: int,
) -> dict[str, Any]:
    """Speaks `rounds` times, at most `frames` frames each, after once to warm up: each figure as best and median."""
    user_cache().mkdir(parents=True, exist_ok=True)
    # On a disk, where /tmp may be memory.
    with tempfile.TemporaryDirectory(dir=user_cache(), ignore_cleanup_errors=True) as cache:
        cold = _compile_seconds(Synthesizer(bundle, device, properties, cache))
        synthesizer = Synthesizer(bundle, device, properties, cache)
        _speak(synthesizer, text, 0, frames)
        peak = peak_memory_mb()  # before there is memory that only waits to be read
        readers = {name: component_reader(synthesizer, name) for name in READ}
        figures: dict[str, list[float]] = {}
        for seed in range(1, rounds + 1):
            found = _speak(synthesizer, text, seed, frames)
            # In every round: a shared machine is not equally fast all the time.
            found |= {f"{name}_weights_read_ms_a_frame": 1000 * reader.seconds() for name, reader in readers.items()}
            for name, value in found.items():
                figures.setdefault(name, []).append(value)
    return {
        "compile_cold_seconds": cold,
        "compile_warm_seconds": _compile_seconds(synthesizer),
        "frames": figures.pop("frames"),
        **{name: {"best": min(values), "median": statistics.median(values)} for name, values in figures.items()},
        "weights_mb_a_frame": {name: reader.size / 1e6 for name, reader in readers.items()},
        "threads": {name: reader.threads for name, reader in readers.items()},
        "peak_memory_mb": peak,
    }


def start_any(synthesizer: Synthesizer, text: str, **options: Any) -> SpeechStream:
    """A stream of any voice that the bundle has; a base bundle speaks with nobody's."""
    bundle = synthesizer.bundle
    if bundle.kind == "custom_voice":
        return synthesizer.stream_custom_voice(text, bundle.speakers[0], **options)
    if bundle.kind == "voice_design":
        return synthesizer.stream_voice_design(text, "A calm voice.", **options)
    nobody = VoicePrompt(np.zeros(bundle.config["talker_config"]["hidden_size"], np.float32))
    return synthesizer.stream_clone(text, nobody, **options)


def ms_a_frame(outcome: Outcome) -> dict[str, float]:
    """Milliseconds of each component for a frame; the talker's prefill, which comes once, stands for itself."""
    seconds, calls = outcome.timings.seconds, outcome.timings.calls
    frames = {name: len(outcome.codes) for name in COMPONENTS} | {"talker": calls.get("talker", 0)}
    found = {f"{name}_ms_a_frame": 1000 * seconds.get(name, 0.0) / max(1, frames[name]) for name in COMPONENTS}
    return {"prefill_ms": 1000 * seconds["prefill"]} | found


def peak_memory_mb() -> float | None:
    """Of this process, in MB; None on Windows, where Python has no means to ask."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _compile_seconds(synthesizer: Synthesizer) -> float:
    return sum(synthesizer.engine.compile_seconds.values())


def _speak(synthesizer: Synthesizer, text: str, seed: int, frames: int) -> dict[str, float]:
    speech = start_any(synthesizer, text, seed=seed, max_frames=frames)
    for _ in speech:
        pass
    outcome = speech.outcome
    spoken = len(outcome.codes)
    return {
        "frames": spoken,
        "first_audio_seconds": outcome.timings.first_audio,
        "real_time_factor": outcome.real_time_factor,
        **ms_a_frame(outcome),
    }


class WeightReader:
    """Reads as many bytes as one infer call reads weights (`weight_reads` of its graph), on `threads` threads."""

    def __init__(self, reads: list[tuple[int, int]], threads: int) -> None:
        self.size, held = sum(size * times for size, times in reads), sum(size for size, _ in reads)
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads)
        # Weights that are read several times are memory that is read several times. Ones: untouched zeros would all
        # be one page of the system's, and come from the processor's cache.
        self._parts = np.array_split(np.ones(max(1, held // 8), np.int64), threads)
        self._times = self.size / max(1, held)

    def seconds(self) -> float:
        """How long one reading takes."""
        start = time.perf_counter()
        list(self._pool.map(self._read, self._parts))
        return time.perf_counter() - start

    def _read(self, words: NDArray[np.int64]) -> None:
        whole, rest = divmod(self._times, 1)
        for _ in range(int(whole)):
            words.max(initial=0)
        words[: int(rest * len(words))].max(initial=0)


def component_reader(synthesizer: Synthesizer, name: str) -> WeightReader:
    """A reader of as many bytes as a component's weights, on as many threads as the component has."""
    xml = synthesizer.bundle.path(synthesizer.bundle.manifest["components"][name]["xml"])
    threads = int(synthesizer.engine.property(name, "INFERENCE_NUM_THREADS") or 1)
    return WeightReader(weight_reads(xml), threads)


def weight_reads(xml: Path) -> list[tuple[int, int]]:
    """Bytes of every weight matrix of a graph, and how often one infer call multiplies with it.

    A weight may reach its product through the steps that decompress it: casts, zero points and scales.
    """
    import openvino as ov

    sizes: dict[str, int] = {}
    times: Counter[str] = Counter()
    for node in ov.Core().read_model(xml).get_ops():
        if node.get_type_name() in ("MatMul", "Convolution"):
            for weight in map(_stored, node.input_values()[:2]):
                if weight is not None:
                    sizes[weight.get_friendly_name()] = weight.get_byte_size()
                    times[weight.get_friendly_name()] += 1
    return [(size, times[name]) for name, size in sizes.items()]


def _stored(output: ov.Output) -> ov.Node | None:
    """The constant that an input comes from, if it comes from nothing else."""
    node = output.get_node()
    kind = node.get_type_name()
    if kind in ("Multiply", "Subtract") and _stored(node.input_value(1)) is None:
        return None  # a norm's weights, not a matrix with its scales
    if kind in ("Convert", "Subtract", "Multiply", "Reshape", "Transpose"):
        return _stored(node.input_value(0))
    return node if kind == "Constant" else None
