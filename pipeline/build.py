"""build: checks the checkpoint, loads it into the PyTorch networks and records what each component computes.

The record, inputs and outputs of a few calls from seeded data in float32, is what the exported graphs must reproduce;
so that an export process never holds PyTorch's network and OpenVINO's compiled graph at the same time.
"""

from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from safetensors.numpy import save_file

from model_src.checkpoint import Checkpoint, CheckpointError
from model_src.config import ConfigError, TalkerConfig
from pipeline.graphs.adaptors import build_graph, graph_names
from pipeline.graphs.components import Call
from pipeline.stage import PipelineError, main, output, paths, report, track


def run(cfg: DictConfig) -> None:
    """Writes artifacts/<variant>/model/<component>.safetensors: named arrays `<call>.<in|out>.<port>`."""
    where = paths(cfg)
    checkpoint = checked(where.checkpoint, cfg.variant.name)
    check_heads(checkpoint.config.talker_config, cfg.layout)
    with output(where.model) as model:
        parameters = {}
        kind = checkpoint.config.tts_model_type
        for name in track(graph_names(cfg.layout, kind), "build"):
            component = build_graph(name, checkpoint, cfg.layout)
            calls = component.calls(np.random.default_rng(cfg.seed))
            write_record(model / f"{name}.safetensors", calls, component.run(calls)[0])
            parameters[name] = sum(parameter.numel() for parameter in component.parameters())
        report(model, {"kind": kind, "parameters": parameters, "seed": cfg.seed})


def checked(folder: Path, variant: str) -> Checkpoint:
    """The checkpoint, if its configurations agree with one another and with the weights. Raises PipelineError."""
    try:
        checkpoint = Checkpoint(folder)
        checkpoint.verify()
    except (ConfigError, CheckpointError) as error:
        remedy = f"correct the checkpoint, then repeat its download: dvc repro --force --single-item download@{variant}"
        raise PipelineError(f"{error}; {remedy}") from None
    return checkpoint


def check_heads(talker: TalkerConfig, layout: DictConfig) -> None:
    """Raises PipelineError where the layout's program knows one width of heads, and the checkpoint has another."""
    for name, network in {"talker": talker, "code predictor": talker.code_predictor_config}.items():
        if network.head_dim != (needed := layout.get("head_dim", network.head_dim)):
            raise PipelineError(
                f"the {name} has heads of {network.head_dim} values, and {layout.name} speaks only from those of "
                f"{needed}; leave this layout out"
            )


def write_record(path: Path, calls: list[Call], results: list[Call]) -> None:
    """Writes calls and their results to one file."""
    arrays: Call = {}
    for index, (call, result) in enumerate(zip(calls, results, strict=True)):
        arrays |= {f"{index}.in.{port}": value for port, value in call.items()}
        arrays |= {f"{index}.out.{port}": value for port, value in result.items()}
    save_file({name: np.asarray(value, order="C") for name, value in arrays.items()}, path)


if __name__ == "__main__":
    main(run)
