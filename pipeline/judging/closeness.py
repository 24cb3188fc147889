"""How close a graph comes to what PyTorch computed: runs it on the record of `build` and holds it against a gate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from pipeline.graphs.components import Call
from pipeline.graphs.teacher_forcing import compiled
from pipeline.stage import PipelineError

MEASURES = ("snr_db", "agreement")
Closeness = dict[str, dict[str, float]]


def read_record(path: Path) -> tuple[list[Call], list[Call]]:
    """The calls and results that `build` recorded for a component."""
    calls: dict[int, Call] = {}
    results: dict[int, Call] = {}
    for key, value in load_file(path).items():
        index, side, port = key.split(".", 2)
        (calls if side == "in" else results).setdefault(int(index), {})[port] = value
    return [calls[index] for index in sorted(calls)], [results[index] for index in sorted(results)]


def compare(xml: Path, record: Path) -> Closeness:
    """How close a graph comes to the recorded results: for each output the lowest SNR in dB or agreement (0 to 1)."""
    request = compiled(xml).create_infer_request()
    found: Closeness = {}
    for call, expected in zip(*read_record(record), strict=True):
        actual = request.infer(call)
        for port, value in expected.items():
            measure, score = closeness(value, actual[port])
            best = found.setdefault(port, {measure: score})
            best[measure] = min(best[measure], score)
    return found


def closeness(expected: np.ndarray, actual: np.ndarray) -> tuple[str, float]:
    """SNR in dB of float outputs (200 when equal), share of equal elements of integer ones; least if shapes differ."""
    if np.issubdtype(expected.dtype, np.integer):
        return "agreement", float((expected == actual).mean()) if expected.shape == actual.shape else 0.0
    if expected.shape != actual.shape or not np.isfinite(actual).all():
        return "snr_db", float("-inf")
    noise = np.square(expected.astype(np.float64) - actual).sum()
    signal = np.square(expected, dtype=np.float64).sum()
    return "snr_db", round(float(min(200.0, 10 * np.log10(signal / noise))), 2) if noise else 200.0


def check(name: str, found: Closeness, gate: Mapping[str, float]) -> None:
    """Raises PipelineError naming the first output that misses the gate; a measure that it leaves out passes."""
    for port, scores in found.items():
        for measure, score in scores.items():
            if score < gate.get(measure, float("-inf")):
                raise PipelineError(
                    f"{name}.{port}: {measure} against PyTorch is {score:.2f}, but its gate is {gate[measure]}"
                )
