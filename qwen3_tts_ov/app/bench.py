"""The cost of speaking on this machine: times and memory, compared with the time it takes just to read the weights.

A frame reads every weight of the talker once, and those of the code predictor once for each of its passes. Reading the
same number of bytes on the same threads is a lower bound on the time, unless the processor's cache holds them.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import engine, memory
from ..bundle import Bundle
from ..engine import user_cache
from ..speech import Outcome
from ..synthesizer import Synthesizer
from ..voice import VoicePrompt

if TYPE_CHECKING:
    import openvino as ov

TEXT = "The quick brown fox jumps over the lazy dog, and then it rests for a while in the afternoon sun."
COMPONENTS = ("talker", "code_predictor", "speech_decoder")
READ = ("talker", "code_predictor")  # bound by memory bandwidth; the decoder's convolutions are bound by arithmetic


def measure(
    bundle: Bundle,
    device: str | Mapping[str, str],
    properties: Mapping[str, Mapping[str, Any]] | None,
    text: str,
    rounds: int,
    frames: int,
) -> dict[str, Any]:
    """Speaks once to warm up, then `rounds` times, at most `frames` frames each: each figure as best and median."""
    # Rather not in /tmp, which may be memory.
    with tempfile.TemporaryDirectory(dir=user_cache(), ignore_cleanup_errors=True) as cache:
        cold = _compile_seconds(Synthesizer(bundle, device, properties, cache))
        synthesizer = Synthesizer(bundle, device, properties, cache)
        _speak(synthesizer, text, 0, frames)
        peak = memory.peak_bytes()  # before the readers take memory of their own
        readers = {name: component_reader(synthesizer, name) for name in READ}
        figures: dict[str, list[float]] = {}
        setting = describe(bundle, synthesizer, properties)
        for seed in range(1, rounds + 1):
            found = _speak(synthesizer, text, seed, frames)
            # In every round: a shared machine is not equally fast all the time.
            found |= {f"{name}_weights_read_ms_a_frame": 1000 * reader.seconds() for name, reader in readers.items()}
            for name, value in found.items():
                figures.setdefault(name, []).append(value)
    return setting | {
        "compile_cold_seconds": cold,
        "compile_warm_seconds": _compile_seconds(synthesizer),
        "frames": figures.pop("frames"),
        **{name: {"best": min(values), "median": statistics.median(values)} for name, values in figures.items()},
        "weights_mb_a_frame": {name: reader.size / 1e6 for name, reader in readers.items()},
        "threads": {name: reader.threads for name, reader in readers.items()},
        "peak_memory_mb": peak / 1e6 or None,
    }


def describe(
    bundle: Bundle, synthesizer: Synthesizer, properties: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, Any]:
    """What was measured, on what: all that a reader of a report needs to know of it."""
    placed = synthesizer.engine.compiled_for
    return {
        "bundle": {key: bundle.manifest[key] for key in ("bundle_id", "variant", "precision", "layout")},
        "versions": {name: version(name) for name in ("qwen3-tts-ov", "openvino")} | {"system": platform.platform()},
        "devices": {device: engine.describe(device) for device in sorted(set(placed.values()))},
        "placement": placed,
        "properties": {name: dict(chosen) for name, chosen in (properties or {}).items()},
    }


def ms_a_frame(outcome: Outcome) -> dict[str, float]:
    """Milliseconds that each component takes per frame; the talker's prefill, which runs once, is listed apart."""
    seconds, calls = outcome.timings.seconds, outcome.timings.calls
    frames = {name: len(outcome.codes) for name in COMPONENTS} | {"talker": calls.get("talker", 0)}
    found = {f"{name}_ms_a_frame": 1000 * seconds.get(name, 0.0) / max(1, frames[name]) for name in COMPONENTS}
    return {"prefill_ms": 1000 * seconds["prefill"]} | found


def _compile_seconds(synthesizer: Synthesizer) -> float:
    return sum(synthesizer.engine.compile_seconds.values())


def _speak(synthesizer: Synthesizer, text: str, seed: int, frames: int) -> dict[str, float]:
    model = synthesizer.model
    nobody = VoicePrompt(np.zeros(model.config["talker_config"]["hidden_size"], np.float32))
    voices: dict[str, dict[str, Any]] = {"voice_design": {"instruct": "A calm voice."}, "base": {"voice": nobody}}
    outcome = synthesizer.speak(text, seed=seed, max_frames=frames, **voices.get(model.kind, {}))
    return {
        "frames": len(outcome.codes),
        "first_audio_seconds": outcome.timings.first_audio,
        "real_time_factor": outcome.real_time_factor,
        **ms_a_frame(outcome),
    }


class WeightReader:
    """Reads as many bytes as one infer call reads of its weights (see `weight_reads`), on `threads` threads."""

    def __init__(self, reads: list[tuple[int, int]], threads: int) -> None:
        self.size, held = sum(size * times for size, times in reads), sum(size for size, _ in reads)
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads)
        # Weights that a call reads several times are read several times here too. Ones, not zeros: untouched zero pages
        # are all the same page, which would come from the processor's cache.
        self._parts = np.array_split(np.ones(max(1, held // 8), np.int64), threads)
        self._times = self.size / max(1, held)

    def seconds(self) -> float:
        """The time of one read."""
        start = time.perf_counter()
        list(self._pool.map(self._read, self._parts))
        return time.perf_counter() - start

    def _read(self, words: NDArray[np.int64]) -> None:
        whole, rest = divmod(self._times, 1)
        for _ in range(int(whole)):
            words.max(initial=0)
        words[: int(rest * len(words))].max(initial=0)


def component_reader(synthesizer: Synthesizer, name: str) -> WeightReader:
    """A reader of as many bytes as a component reads in a call, on as many threads as the component has."""
    threads = int(synthesizer.engine.property(name, "INFERENCE_NUM_THREADS") or 1)
    return WeightReader(weight_reads(synthesizer.model.graphs[name]), threads)


def weight_reads(xml: Path) -> list[tuple[int, int]]:
    """The bytes of each weight matrix of a graph, and how many times one infer call multiplies by it.

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
    """The constant that an input comes from, if it comes from a constant alone."""
    node = output.get_node()
    kind = node.get_type_name()
    if kind in ("Multiply", "Subtract") and _stored(node.input_value(1)) is None:
        return None  # a norm's weights, not a matrix with its scales
    if kind in ("Convert", "Subtract", "Multiply", "Reshape", "Transpose"):
        return _stored(node.input_value(0))
    return node if kind == "Constant" else None
