"""compress: stores every component's weights by the precision's policy, and says what that costs.

Each component is compressed in a process of its own, compared with what PyTorch computed from the checkpoint, fed what
the exported graphs spoke (quality.py), and held against the policy's gate.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from pipeline.graphs.adaptors import GRAPHS, made
from pipeline.graphs.components import COMPONENTS
from pipeline.graphs.compression import compress
from pipeline.judging import closeness, quality
from pipeline.stage import PipelineError, alone, main, output, paths, read_report, report, track

# Keys of a policy that mean something only beside `calibrated`.
NEED_DATA = ("calibrated", "subset_size", "sensitivity_metric", "awq", "scale_estimation", "gptq", "lora_correction")


def run(cfg: DictConfig) -> None:
    """Writes artifacts/<variant>/<precision>/ir. Raises PipelineError for a bad policy or a missed gate."""
    where = paths(cfg)
    weights, gates = by_component(cfg.precision, "weights"), by_component(cfg.precision, "gate")
    if read_report(where.checkpoint)["source"] == "synthetic":
        gates |= by_component(cfg.precision, "synthetic")
    read_report(where.ir)
    components, measured = {}, {}
    with output(where.compressed) as ir:
        names = made(cfg.layout, read_report(where.model)["kind"])
        for name in track(names, f"compress to {cfg.precision.name}"):
            xml, policy = ir / f"{name}.xml", GRAPHS[name].adapts or name
            stored = data_free(weights[policy]) if GRAPHS[name].adapts else weights[policy]
            measured[name] = alone(compress, where.ir / xml.name, xml, stored, where.rollout)
            compared = closeness.compare(xml, where.model / f"{name}.safetensors")
            judged = alone(quality.judge, name, xml, where.ir / xml.name, where.rollout)
            components[name] = {
                "policy": policy,
                "weights": stored,
                "bytes": xml.with_suffix(".bin").stat().st_size,
                "closeness": compared,
                "quality": judged,
                "gate": gates[policy],
            }
            closeness.check(name, compared, gates[policy])
            quality.check(name, judged, gates[policy])
        points = [cost(name, entry, cfg) for name, entry in components.items()]
        report(ir, {"components": components, "costs": points, "measured": measured}, points)


def cost(name: str, entry: dict[str, Any], cfg: DictConfig) -> dict[str, Any]:
    """A component's point in the plot of size against quality, of which the first measure stands for all."""
    measures = entry["quality"] or next(iter(entry["closeness"].values()))
    measure, value = next(iter(measures.items()))
    return {
        "panel": f"{name}: {measure}",
        "variant": cfg.variant.name,
        "precision": cfg.precision.name,
        "megabytes": entry["bytes"] / 1e6,
        "quality": value,
    }


def by_component(precision: DictConfig, section: str) -> dict[str, dict[str, Any]]:
    """A section of the policy by component: where one has no entry of its own, the default if the section has one.

    Raises PipelineError for an unknown component, in a gate also for an unknown measure.
    """
    entries: Any = OmegaConf.to_container(precision[section], resolve=True)
    where = f"conf/precision/{precision.name}.yaml: {section}"
    if unknown := sorted(set(entries) - set(COMPONENTS) - {"default"}):
        raise PipelineError(f"{where} names an unknown component {unknown[0]!r}; known: {', '.join(COMPONENTS)}")
    if section != "synthetic" and "default" not in entries:
        raise PipelineError(f"{where} has no default, for the components that it does not name")
    if section != "weights":
        known = (*closeness.MEASURES, *quality.MEASURES)
        if unknown := sorted({measure for gate in entries.values() for measure in gate} - set(known)):
            raise PipelineError(f"{where} names an unknown measure {unknown[0]!r}; known: {', '.join(known)}")
    default = dict.fromkeys(COMPONENTS, entries.pop("default")) if "default" in entries else {}
    return default | entries


def data_free(policy: dict[str, Any]) -> dict[str, Any]:
    """A policy without what needs calibration: an adaptor's ports are not those that the rollouts went through."""
    return {key: value for key, value in policy.items() if key not in NEED_DATA}


if __name__ == "__main__":
    main(run)
