"""export: every component as OpenVINO IR, each in a process of its own, and compared with what `build` recorded.

One process for one component gives its memory back, and makes the IR the same bytes every time: a second conversion
in one process names its nodes differently. Weights stay in the dtype that the checkpoint stores; `compress` decides
what a bundle holds.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from omegaconf import DictConfig

from model_src.checkpoint import Checkpoint
from pipeline.build import read_record
from pipeline.components import COMPONENTS, carried
from pipeline.graph import convert
from pipeline.stage import PipelineError, main, output, paths, read_report, report, track

# Exact arithmetic, to compare graphs and not devices' shortcuts.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}


def run(cfg: DictConfig) -> None:
    """Writes artifacts/<variant>/ir/<component>.xml and .bin. Raises PipelineError when a graph misses its gate."""
    where = paths(cfg)
    source = read_report(where.checkpoint)
    kind = read_report(where.model)["kind"]
    labels = {"variant": cfg.variant.name, "source": source["source"], "revision": source["revision"] or ""}
    components, measured = {}, {}
    with output(where.ir) as ir:
        for name in track(carried(kind), "export"):
            measured[name] = alone(export, name, where.checkpoint, ir, labels)
            components[name] = parity(ir / f"{name}.xml", where.model / f"{name}.safetensors")
            check(name, components[name], cfg.parity)
        report(ir, {"components": components, "gate": dict(cfg.parity), "measured": measured})


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of this module in a process that has done nothing before, and return what it returns."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.graph"])  # the imports are done once, before the forks
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def export(name: str, checkpoint: Path, directory: Path, labels: dict[str, str]) -> dict[str, float]:
    """Write one component's IR. Returns the seconds it took and the peak resident memory in bytes."""
    start = time.perf_counter()
    component = COMPONENTS[name](Checkpoint(checkpoint))  # lives until the end: the graph shares its weights
    model = convert(component)
    for key, value in {"component": name, "layout": "native", **labels}.items():
        model.set_rt_info(value, ["qwen3_tts", key])
    ov.save_model(model, directory / f"{name}.xml", compress_to_fp16=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": round(time.perf_counter() - start, 1), "peak_bytes": peak}


def parity(xml: Path, record: Path) -> dict[str, dict[str, float]]:
    """How close a graph comes to the recorded results: for each output the lowest SNR in dB or agreement (0 to 1)."""
    request = ov.Core().compile_model(xml, "CPU", EXACT).create_infer_request()
    found: dict[str, dict[str, float]] = {}
    for call, expected in zip(*read_record(record), strict=True):
        actual = request.infer(call)
        for port, value in expected.items():
            measure, score = closeness(value, actual[port])
            best = found.setdefault(port, {measure: score})
            best[measure] = min(best[measure], score)
    return found


def closeness(expected: np.ndarray, actual: np.ndarray) -> tuple[str, float]:
    """SNR in dB of float outputs (200 when equal), the share of equal elements of integer ones; -inf or 0 if shapes differ."""
    if np.issubdtype(expected.dtype, np.integer):
        return "agreement", float((expected == actual).mean()) if expected.shape == actual.shape else 0.0
    if expected.shape != actual.shape or not np.isfinite(actual).all():
        return "snr_db", float("-inf")
    noise = np.square(expected.astype(np.float64) - actual).sum()
    signal = np.square(expected, dtype=np.float64).sum()
    return "snr_db", round(float(min(200.0, 10 * np.log10(signal / noise))), 2) if noise else 200.0


def check(name: str, found: dict[str, dict[str, float]], gate: DictConfig) -> None:
    """Raises PipelineError naming the first output that misses the gate of conf/config.yaml."""
    for port, scores in found.items():
        for measure, score in scores.items():
            if score < gate[measure]:
                raise PipelineError(
                    f"{name}.{port}: {measure} against PyTorch is {score:.2f}, the gate {gate[measure]}; "
                    "the graph does not compute what the network does"
                )


if __name__ == "__main__":
    main(run)
