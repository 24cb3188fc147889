"""How close a graph comes to what PyTorch computed, on the calls that `build` recorded."""

from pathlib import Path

import numpy as np
import openvino as ov
from safetensors.numpy import load_file

from pipeline.graphs.components import Call
from pipeline.judging.gates import Bounds, require

Closeness = dict[str, dict[str, float]]  # by output, its one measure: snr_db or agreement


def read_record(path: Path) -> tuple[list[Call], list[Call]]:
    """The calls and results that `build` recorded for a component."""
    calls: dict[int, Call] = {}
    results: dict[int, Call] = {}
    for key, value in load_file(path).items():
        index, side, port = key.split(".", 2)
        (calls if side == "in" else results).setdefault(int(index), {})[port] = value
    return [calls[index] for index in sorted(calls)], [results[index] for index in sorted(results)]


def compare(request: ov.InferRequest, record: Path) -> Closeness:
    """How close a graph comes to the recorded results: for each output the lowest SNR in dB or agreement (0 to 1)."""
    found: Closeness = {}
    for call, expected in zip(*read_record(record), strict=True):
        actual = request.infer(call)
        for port, value in expected.items():
            measure, score = closeness(value, actual[port])
            best = found.setdefault(port, {measure: score})
            best[measure] = min(best[measure], score)
    return found


def closeness(expected: np.ndarray, actual: np.ndarray) -> tuple[str, float]:
    """SNR in dB of float outputs (200 when equal), share of equal elements of integer ones (0 to 1).

    -inf where the shapes differ or a float is not finite, which no gate lets pass.
    """
    measure = "agreement" if np.issubdtype(expected.dtype, np.integer) else "snr_db"
    if expected.shape != actual.shape or not np.isfinite(actual).all():
        return measure, float("-inf")
    if measure == "agreement":
        return measure, float((expected == actual).mean())
    noise = np.square(expected.astype(np.float64) - actual).sum()
    signal = np.square(expected, dtype=np.float64).sum()
    return measure, round(float(min(200.0, 10 * np.log10(signal / noise))), 2) if noise else 200.0


def check(name: str, found: Closeness, bounds: Bounds) -> None:
    """Raises GateError for the first output that is not finite, of another shape, or past the bound of its measure."""
    for port, scores in found.items():
        require(f"{name}.{port}", scores, {measure: bounds[measure] for measure in scores if measure in bounds})
