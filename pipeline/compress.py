"""compress: stores every component's weights by the precision's policy, and says what that costs.

Each component is compressed in a process of its own, compared with what PyTorch computed from the checkpoint, and fed
what the exported graphs spoke (judging/quality.py). Weights in 16 bits must keep parity with PyTorch, or the stage
fails. What fewer bits cost is held to the precision's bounds, and a miss is printed and reported.
"""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from pipeline.graphs.adaptors import GRAPHS, graph_names
from pipeline.graphs.components import COMPONENTS
from pipeline.graphs.compression import compress
from pipeline.judging import closeness, quality
from pipeline.judging.gates import OF_GRAPHS, missed, tell, worst
from pipeline.stage import PipelineError, alone, main, output, paths, read_report, report, track

# Keys of a policy that need `calibrated`.
NEED_DATA = ("calibrated", "subset_size", "sensitivity_metric", "awq", "scale_estimation", "gptq", "lora_correction")


def run(cfg: DictConfig) -> None:
    """Writes artifacts/<variant>/<precision>/ir. Raises PipelineError for a bad policy, GateError without parity."""
    where = paths(cfg)
    weights, bounds = by_component(cfg.precision, "weights"), by_component(cfg.precision, "bounds")
    if read_report(where.checkpoint)["source"] == "synthetic":
        bounds |= by_component(cfg.precision, "synthetic")
    read_report(where.ir)
    components, measured, misses = {}, {}, []
    with output(where.compressed) as ir:
        names = graph_names(cfg.layout, read_report(where.model)["kind"])
        for name in track(names, f"compress to {cfg.precision.name}"):
            xml, policy = ir / f"{name}.xml", GRAPHS[name].adapts or name
            stored = weights[policy]
            if GRAPHS[name].adapts:  # the rollouts did not go through its ports
                stored = {key: value for key, value in stored.items() if key not in NEED_DATA}
            measured[name] = alone(compress, where.ir / xml.name, xml, stored, where.rollout)
            compared, judged = alone(
                quality.assess, name, xml, where.model / f"{name}.safetensors", where.ir / xml.name, where.rollout
            )
            exact = dict(cfg.parity.f16.get(policy, cfg.parity.f16.default)) if stored["mode"] == "f16" else {}
            closeness.check(name, compared, exact)
            figures, held = worst(compared) | judged, bounds.get(policy, {})
            if GRAPHS[name].adapts:  # its component is fed the texts for both
                held = {measure: bound for measure, bound in held.items() if measure in figures}
            components[name] = {
                "policy": policy,
                "weights": stored,
                "bytes": xml.with_suffix(".bin").stat().st_size,
                "closeness": compared,
                "quality": judged,
                "parity": exact,
                "bounds": held,
            }
            misses += missed(name, figures, held)
        points = [cost(name, entry, cfg) for name, entry in components.items()]
        entries = [miss.entry() for miss in misses]
        report(ir, {"components": components, "missed": entries, "costs": points, "measured": measured}, points)
    tell(misses)


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
    """A section of a precision by component: where one has no entry of its own, the default if the section has one.

    Raises PipelineError for an unknown component, among bounds also for an unknown measure.
    """
    entries: Any = OmegaConf.to_container(precision[section], resolve=True)
    where = f"conf/precision/{precision.name}.yaml: {section}"
    if unknown := sorted(set(entries) - set(COMPONENTS) - {"default"}):
        raise PipelineError(f"{where} names an unknown component {unknown[0]!r}; known: {', '.join(COMPONENTS)}")
    if section == "weights":
        if "default" not in entries:
            raise PipelineError(f"{where} has no default for the components that it does not name")
    elif unknown := sorted({measure for bounds in entries.values() for measure in bounds} - set(OF_GRAPHS)):
        raise PipelineError(f"{where} names an unknown measure {unknown[0]!r}; known: {', '.join(OF_GRAPHS)}")
    default = dict.fromkeys(COMPONENTS, entries.pop("default")) if "default" in entries else {}
    return default | entries


if __name__ == "__main__":
    main(run)
