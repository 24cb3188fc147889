"""A layout: which graphs a bundle holds, and the names of their files and ports. Declared in conf/layout.

Earlier stages use the components' own names. `bundle` takes the graphs that a layout lists, native ones and adaptors,
and gives them the layout's names.
"""

import filecmp
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov
from omegaconf import DictConfig, OmegaConf

from pipeline.stage import PipelineError
from qwen3_tts_ov.manifest import NATIVE, NPU

SPOKEN = (NATIVE, NPU)  # the layouts that the runtime of this project reads
# The compile properties that OpenVINO also reads from a graph where a program gives none.
CARRIED = ("KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE")


@dataclass(frozen=True)
class Graph:
    """A component's place in a layout.

    `policy` is the component whose entries in conf apply to it, `weights` how they are stored, `source` its compressed
    graph (.xml), `file` its path in the bundle without an ending; `ports` maps the component's names of ports to those
    of the layout where they differ; `sizes` are those of a graph of fixed shapes.
    """

    component: str
    policy: str
    weights: dict[str, Any]
    source: Path
    file: str
    ports: dict[str, str]
    sizes: dict[str, int]


def graphs(layout: DictConfig, compressed: Mapping[Path, dict[str, Any]]) -> list[Graph]:
    """The graphs that a layout lists and `compress` made, in the layout's order; not every kind has all of them.

    `compressed` has the report of each folder that `compress` wrote for the layout.
    """
    made = {
        name: (folder, entry) for folder, found in compressed.items() for name, entry in found["components"].items()
    }
    listed: Any = OmegaConf.to_container(layout.graphs, resolve=True)
    found = []
    for name in filter(made.__contains__, listed):
        folder, entry = made[name]
        place, policy = listed[name], entry["policy"]
        component = policy if layout.name in SPOKEN else name  # the runtime knows each by what it stands for
        source, ports, sizes = folder / f"{name}.xml", place.get("ports", {}), place.get("sizes", {})
        found.append(Graph(component, policy, entry["weights"], source, place["file"], ports, sizes))
    return found


def place(graph: Graph, layout: str, bundle: Path, recommended: Mapping[str, Any]) -> None:
    """Puts a graph into a bundle under the layout's names.

    This project's runtime takes the `recommended` compile properties from the manifest; for other programs, the graph
    carries those that it can. Stages replace files and never write into them, so unchanged files are linked. Raises
    PipelineError where OpenVINO cannot read the graph, or where it lacks a port that the layout renames.
    """
    target = bundle / f"{graph.file}.xml"
    target.parent.mkdir(exist_ok=True)
    source_weights, target_weights = graph.source.with_suffix(".bin"), target.with_suffix(".bin")
    model = read(graph.source)  # in every layout: a graph without its weights is named before anything is linked
    if layout in SPOKEN:
        link(graph.source, target)
        link(source_weights, target_weights)
        return
    rename(model, graph)
    model.set_rt_info(layout, ["qwen3_tts", "layout"])
    for name in CARRIED:
        if name in recommended:
            model.set_rt_info(str(recommended[name]), ["runtime_options", name])
    ov.save_model(model, target, compress_to_fp16=False)
    if filecmp.cmp(source_weights, target_weights, shallow=False):  # names lie in the .xml
        target_weights.unlink()
        link(source_weights, target_weights)


def rename(model: ov.Model, graph: Graph) -> None:
    """Gives the ports of a graph the layout's names. Raises PipelineError for a port that it does not have."""
    ports = {port.any_name: port for port in [*model.inputs, *model.outputs]}
    for ours, theirs in graph.ports.items():
        if ours not in ports:
            raise PipelineError(f"conf/layout: {graph.component} has no port {ours!r}, but {', '.join(ports)}")
        ports[ours].get_tensor().set_names({theirs})


def read(xml: Path) -> ov.Model:
    """A graph of an earlier stage. Raises PipelineError."""
    try:
        return ov.Core().read_model(xml)
    except RuntimeError as error:
        raise PipelineError(f"{xml.name}: OpenVINO cannot read it ({error}); run export and compress again") from error


def link(source: Path, target: Path) -> None:
    """Links a file, or copies it where that fails."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
