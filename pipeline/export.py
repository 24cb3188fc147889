"""export: every component as OpenVINO IR, each in a process of its own, and compared with what `build` recorded.

One process for one component gives its memory back, and makes the IR the same bytes every time: a second conversion
in one process names its nodes differently. Weights stay in the dtype that the checkpoint stores; `compress` decides
what a bundle holds.
"""

import time

from omegaconf import DictConfig

from pipeline.graphs.adaptors import graph_names
from pipeline.graphs.convert import export
from pipeline.graphs.teacher_forcing import request
from pipeline.judging.closeness import check, compare
from pipeline.stage import alone, main, output, paths, read_report, report, track
from qwen3_tts_ov.memory import peak_bytes


def run(cfg: DictConfig) -> None:
    """Writes artifacts/<variant>/ir/<component>.xml and .bin. Raises GateError where a graph misses its bounds."""
    where = paths(cfg)
    source = read_report(where.checkpoint)
    kind = read_report(where.model)["kind"]
    labels = {
        "variant": cfg.variant.name,
        "layout": cfg.layout.name,
        "source": source["source"],
        "revision": source["revision"] or "",
    }
    start = time.perf_counter()
    components, measured = {}, {}
    with output(where.ir) as ir:
        for name in track(graph_names(cfg.layout, kind), "export"):
            measured[name] = alone(export, name, where.checkpoint, ir, labels, cfg.layout)
            components[name] = compare(request(ir / f"{name}.xml"), where.model / f"{name}.safetensors")
            check(name, components[name], cfg.parity.export)
        own = peak_bytes()  # where the graphs are compared
        peak = max([own, *(process["peak_bytes"] for process in measured.values())])
        measured["stage"] = {"seconds": round(time.perf_counter() - start, 1), "peak_bytes": peak}
        report(ir, {"components": components, "bounds": dict(cfg.parity.export), "measured": measured})


if __name__ == "__main__":
    main(run)
