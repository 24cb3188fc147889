"""From a component to an OpenVINO graph: trace, name the ports, put the state inside."""

import re
import time
import warnings
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from omegaconf import DictConfig
from openvino import opset13 as ops
from openvino._offline_transformations import apply_make_stateful_transformation
from openvino.frontend.pytorch import ModuleExtension
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

from model_src.checkpoint import Checkpoint
from model_src.layers import Linear
from pipeline.graphs.adaptors import build_graph
from pipeline.graphs.components import Component
from pipeline.graphs.surgery import merge_products, readers, replace
from qwen3_tts_ov.memory import peak_bytes

# Traced as one operation over the stored weight. The tracer keeps every tensor that it sees, so running the layers
# would hold a float32 copy of each weight for every use: 4.1 GB for the 1.7B's code predictor of 0.36 GB.
LINEAR = ModuleExtension(
    Linear,
    "ov_ext::linear",
    evaluate=lambda module, x, *weights: x.new_full((*x.shape[:-1], module.out_features), 0.5),
    convert=lambda module, operation, x: operation(x, module.weight, module.bias),
)


def export(
    name: str, checkpoint: Path, directory: Path, labels: dict[str, str], layout: DictConfig
) -> dict[str, float]:
    """Write one component's IR. Returns the seconds it took and the peak resident memory in bytes."""
    start = time.perf_counter()
    component = build_graph(name, Checkpoint(checkpoint), layout)  # lives until the end: the graph shares its weights
    model = convert(component)
    for key, value in {"component": name, **labels}.items():
        model.set_rt_info(value, ["qwen3_tts", key])
    ov.save_model(model, directory / f"{name}.xml", compress_to_fp16=False)
    return {"seconds": round(time.perf_counter() - start, 1), "peak_bytes": peak_bytes()}


def convert(component: Component) -> ov.Model:
    """The component as a graph with dynamic shapes, weights in the dtype that the checkpoint stores."""
    example = trace_example(component)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns about every Python branch; those here are constant
        # PyTorch would trace twice more and compare; the stage compares what the graph computes.
        traced = TorchScriptPythonDecoder(
            component,
            example_input=example,
            module_extensions={LINEAR.module: LINEAR},
            trace_kwargs={"check_trace": False},
        )
        model = ov.convert_model(traced, example_input=example)
    past = list(component.states)
    # OpenVINO's passes for NPU recognise a cache by `past_key_values.*` and `present.*`.
    present = [re.sub("past(_key_values)?", "present", name, count=1) for name in past]
    shapes = [port.shape for port in component.inputs.values()] + list(component.states.values())
    for port, name, shape in zip(model.inputs, [*component.inputs, *past], shapes, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(ov.PartialShape(list(shape)))
    for port, name in zip(model.outputs, [*component.outputs, *present], strict=True):
        port.get_tensor().set_names({name})
    model.validate_nodes_and_infer_types()
    if component.merge_products:
        merge_products(model)
    if past:
        make_stateful(model, dict(zip(past, present, strict=True)))
    name_only_ports(model)
    return model


def name_only_ports(model: ov.Model) -> None:
    """Take away the names of all tensors except inputs and outputs.

    The tracer names every tensor. Where a plugin fuses the operation before an output into it, or a pass turns a state
    back into an input, the port gets the inner tensor's name as well, and a program that asks for a port's one name
    (`get_any_name`) may be told that one. Compiled graphs show it, read ones do not.
    """
    ports = [(port.get_tensor(), port.names) for port in (*model.inputs, *model.outputs)]
    for node in model.get_ops():
        for output in node.outputs():
            output.get_tensor().set_names(set())
    for tensor, names in ports:
        tensor.set_names(names)


def trace_example(component: Component) -> tuple[torch.Tensor, ...]:
    """Inputs to trace with; for a stateful component those of its second call, with the state that the first left."""
    calls = component.calls(np.random.default_rng(0))
    before = calls[:1] if component.states else []
    call, (_, state) = calls[len(before)], component.run(before)
    return (*(torch.from_numpy(call[name]) for name in component.inputs), *(tensor.clone() for tensor in state))


def make_stateful(model: ov.Model, states: dict[str, str]) -> None:
    """Turn pairs of input and output into variables that start as zeros, of length 0 where they grow.

    Without an initialiser that follows the batch, OpenVINO's CPU plugin cannot compile attention with its cache.
    """
    batch_source = model.inputs[0]
    apply_make_stateful_transformation(model, states)
    batch = ops.gather(ops.shape_of(batch_source, output_type="i64"), ops.constant([0], np.int64), ops.constant(0))
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            sizes = list(node.get_output_partial_shape(0))[1:]
            lengths = ops.constant([size.get_length() if size.is_static else 0 for size in sizes], np.int64)
            zeros = ops.broadcast(ops.constant(0.0, np.float32), ops.concat([batch, lengths], axis=0))
            before = node.output(0).get_target_inputs()
            node.set_arguments([zeros])
            if all(size.is_static for size in sizes):
                # The CPU plugin moves an initialiser that nothing else reads into the ReadValue, and then fails to
                # compile it (2026.4: "Invalid graph status"). Adding the zeros gives them a second reader.
                state = ops.add(node, zeros)
                for port in before:
                    port.replace_source_output(state.output(0))
    read_shapes_after_beams(model, batch)
    model.validate_nodes_and_infer_types()


def read_shapes_after_beams(model: ov.Model, batch: ov.Node) -> None:
    """Read shapes off what `beam_idx` gathers from a cache, and the batch size off the inputs.

    OpenVINO's simplifications read them off the cache and off `beam_idx` itself. Its pass that takes the state out
    again, which other runtimes run for NPU, then leaves a variable or `beam_idx` behind and fails.
    """
    for port in model.inputs:
        if port.any_name != "beam_idx":
            continue
        for reader in readers(port.get_node()):
            if reader.get_type_name() == "ShapeOf":
                replace(reader, ops.convert(batch, reader.get_element_type()))
            elif reader.get_type_name() == "Gather":
                for beside in readers(reader.input_value(0).get_node()):
                    if beside.get_type_name() == "ShapeOf":
                        beside.input(0).replace_source_output(reader.output(0))
