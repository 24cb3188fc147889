"""How the full matrix would scale: a simulation of the groups of pipeline.fleet on 1 to 32 workers.

    python -m benchmarks.fleet_scaling     prints a table, writes benchmarks/fleet_scaling.svg

Five checkpoints, four precisions, three other layouts. benchmarks/stage_seconds.json has the time of a stage on one
worker of 2 cores, the size of its outputs, and which of these were measured. A group pulls its inputs and pushes its
outputs over NETWORK; a single worker does neither. Workers take groups in the order in which the fleet submits them.
"""

import heapq
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vl_convert
from ruamel.yaml import YAML

from pipeline.fleet.plan import Group, Plan
from pipeline.stage import ROOT

AXES = {
    "variants": ["0.6b-base", "0.6b-custom-voice", "1.7b-base", "1.7b-custom-voice", "1.7b-voice-design"],
    "precisions": ["fp16", "int8", "int4", "int4-max"],
    "layouts": ["openarc", "genai", "npu"],
}
WORKERS = (1, 2, 4, 8, 16, 32)
NETWORK = 0.125  # GB/s per worker: 1 Gbit/s
FIGURES = Path(__file__).with_name("stage_seconds.json")
Figures = Mapping[str, Any]


def full_matrix(folder: Path) -> Plan:
    """The plan of dvc.yaml with all axes."""
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    shutil.copy(ROOT / "dvc.yaml", folder)
    YAML().dump(AXES, folder / "params.yaml")
    return Plan(folder)


def figure(figures: Figures, plan: Plan, name: str, what: str) -> float:
    """Seconds or gigabytes of a stage: by size, then by layout and precision where these matter."""
    chosen = plan.chosen(name)
    value = figures[what][chosen["variant"].partition("-")[0]].get(name.partition("@")[0], 0)
    for axis in ("layout", "precision"):
        if isinstance(value, dict) and axis in chosen:
            value = value[chosen[axis]]
    return float(value)


def seconds(figures: Figures, plan: Plan, group: Group, network: float) -> float:
    """Seconds that a group takes on a worker, transfers included."""
    makers = {out.def_path: name for name, stage in plan.stages.items() for out in stage.outs}
    whole = [makers[path] for path in plan.inputs(group.stages) if path in makers]  # single files of one are small
    moved = sum(figure(figures, plan, name, "gigabytes") for name in [*whole, *group.stages])
    return sum(figure(figures, plan, name, "seconds") for name in group.stages) + moved / network


def schedule(groups: Mapping[str, Group], times: Mapping[str, float], workers: int) -> float:
    """When the last group ends, if a free worker always takes the first group whose inputs are ready."""
    waiting, done, running, now = dict(groups), set[str](), list[tuple[float, str]](), 0.0
    while waiting or running:
        for group in [group for group in waiting.values() if group.after <= done][: workers - len(running)]:
            heapq.heappush(running, (now + times[group.name], group.name))
            del waiting[group.name]
        now, over = heapq.heappop(running)
        done.add(over)
    return now


def critical_path(groups: Mapping[str, Group], times: Mapping[str, float]) -> list[str]:
    """The chain of groups that takes longest: a lower bound for any number of workers."""
    chains: dict[str, list[str]] = {}

    def chain(name: str) -> list[str]:
        if name not in chains:
            before = max(
                map(chain, groups[name].after), key=lambda names: sum(map(times.__getitem__, names)), default=[]
            )
            chains[name] = [*before, name]
        return chains[name]

    return max(map(chain, groups), key=lambda names: sum(map(times.__getitem__, names)))


def plot(rows: list[dict[str, float]], bound: float) -> str:
    """Time and efficiency by number of workers, as SVG."""

    def panel(field: str, title: str, kind: str) -> dict[str, Any]:
        y = {"field": field, "type": "quantitative", "title": title, "scale": {"type": kind, "zero": kind == "linear"}}
        x = {
            "field": "workers",
            "type": "quantitative",
            "scale": {"type": "log", "base": 2},
            "axis": {"values": list(WORKERS)},
        }
        return {"width": 260, "height": 200, "mark": {"type": "line", "point": True}, "encoding": {"x": x, "y": y}}

    hours = panel("hours", "hours", "log")
    rule = {"mark": {"type": "rule", "strokeDash": [4, 4]}, "encoding": {"y": {"datum": bound / 3600}}}
    layered = {"width": 260, "height": 200, "layer": [{key: hours[key] for key in ("mark", "encoding")}, rule]}
    return vl_convert.vegalite_to_svg(
        {
            "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
            "title": "The full matrix on many workers of 2 cores; dashed: the critical path",
            "data": {"values": rows},
            "hconcat": [layered, panel("efficiency", "efficiency", "linear")],
        }
    )


def main() -> None:
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        plan = full_matrix(Path(folder))
        groups = plan.groups(plan.select("*"))
        alone = {group.name: seconds(figures, plan, group, float("inf")) for group in groups.values()}
        times = {group.name: seconds(figures, plan, group, NETWORK) for group in groups.values()}
    rows = []
    for workers in WORKERS:
        spent = schedule(groups, alone if workers == 1 else times, workers)
        efficiency = sum(alone.values()) / workers / spent
        rows.append({"workers": workers, "hours": spent / 3600, "efficiency": efficiency})
        print(f"{workers:2} workers: {spent / 3600:5.2f} h, {efficiency:4.0%} of a perfect split")
    path = critical_path(groups, times)
    print(f"{len(plan.stages)} stages in {len(groups)} groups; critical path {' -> '.join(path)}:", end=" ")
    bound = sum(map(times.__getitem__, path))
    print(f"{bound / 60:.0f} min, of which transfers {(bound - sum(map(alone.__getitem__, path))) / 60:.0f} min")
    print(f"transfers in total: {(sum(times.values()) - sum(alone.values())) / sum(times.values()):.0%} of the work")
    FIGURES.with_name("fleet_scaling.svg").write_text(plot(rows, bound) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
