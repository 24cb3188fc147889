"""Why the code predictor is one unrolled graph: a comparison with the same fifteen steps as an OpenVINO Loop.

    python benchmarks/code_predictor_loop.py artifacts/synthetic-0.6b-custom-voice

compares both in 16 bits on the CPU. The codes must be equal. Calls alternate, and each graph is compiled in a process
of its own, so that its memory can be measured. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openvino as ov
import psutil
import torch
from torch import Tensor, nn

from model_src.checkpoint import Checkpoint
from model_src.code_predictor import CodePredictor
from model_src.layers import Embedding, rotary, rotate
from model_src.sampling import draw
from pipeline.graphs.components import CodePredictor as Component
from pipeline.graphs.compression import to_f16
from pipeline.stage import alone

RUNS = 15
PROPERTIES = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}  # as in conf/device for CPU


class Step(nn.Module):
    """One position of the code predictor, with a cache of fixed size; gathers the head and table of that position."""

    def __init__(self, network: CodePredictor) -> None:
        super().__init__()
        self.network = network
        self.codes = network.config.vocab_size
        self.slots = len(network.heads) + 1
        self.heads = Embedding.from_pretrained(torch.cat([head.weight for head in network.heads]))
        self.table = Embedding.from_pretrained(torch.cat([table.weight for table in network.embeddings]))

    def forward(
        self,
        inputs: Tensor,
        position: Tensor,
        cache: Tensor,
        noise: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A code [batch, 1], its embedding [batch, 1, width] and the cache [layers, 2, batch, heads, slots, size]."""
        config = self.network.config
        slots = torch.arange(self.slots)
        mask = torch.where(slots <= position, 0.0, float("-inf"))[None, None, None]
        positions = rotary(position[None], config.head_dim, config.rope_theta)
        hidden, present = self.network.projection(inputs), []
        for layer, past in zip(self.network.layers, cache.unbind(), strict=True):
            queries, keys, values = layer.self_attn.project(layer.input_layernorm(hidden))
            new = torch.stack((rotate(keys, *positions), values))
            kept = torch.where((slots == position)[:, None], new, past)
            attended = layer.self_attn.attend(rotate(queries, *positions), kept[0], kept[1], mask)
            hidden = hidden + attended
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            present.append(kept)
        group = (position - 1).clamp(min=0)
        head = self.heads(group * self.codes + torch.arange(self.codes))
        logits = self.network.norm(hidden)[:, 0] @ head.T
        code = draw(logits, noise.index_select(1, group)[:, 0], temperature, top_k, top_p)
        return code, self.table(code + group * self.codes), torch.stack(present)


class Looped(nn.Module):
    """A whole frame as a loop over `Step`."""

    def __init__(self, step: torch.jit.ScriptModule, first_embedding: Embedding, cache: tuple[int, ...]) -> None:
        super().__init__()
        self.step, self.first_embedding = step, torch.jit.trace(first_embedding, torch.zeros(1, 1, dtype=torch.int64))
        self.layers, _, _, self.heads, self.slots, self.size = cache

    def forward(
        self,
        talker_hidden: Tensor,
        first_code: Tensor,
        noise: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
    ) -> tuple[Tensor, Tensor]:
        batch = talker_hidden.shape[0]
        cache = torch.zeros([self.layers, 2, batch, self.heads, self.slots, self.size])
        start = torch.zeros([1], dtype=torch.int64)
        _, _, cache = self.step(talker_hidden, start, cache, noise, temperature, top_k, top_p)
        inputs = self.first_embedding(first_code)
        codes, summed = first_code, inputs
        for number in range(15):
            code, inputs, cache = self.step(inputs, start + number + 1, cache, noise, temperature, top_k, top_p)
            codes, summed = torch.cat((codes, code), dim=1), summed + inputs
        return codes, summed


def write_loop(checkpoint: Path, target: Path) -> None:
    """The frame as a graph with a Loop, with weights in 16 bits, as `compress` stores the unrolled graph."""
    component = Component(Checkpoint(checkpoint))
    network, example = component.network, component.calls(np.random.default_rng(0))[1]
    config = network.config
    cache = (len(network.layers), 2, 1, config.num_key_value_heads, len(network.heads) + 1, config.head_dim)
    rules = [torch.from_numpy(example[name]) for name in ("noise", "temperature", "top_k", "top_p")]
    inputs = (torch.from_numpy(example["talker_hidden"]), torch.ones(1, dtype=torch.int64), torch.zeros(cache), *rules)
    with torch.no_grad():
        step = torch.jit.trace(Step(network).eval(), inputs, check_trace=False)
        script = torch.jit.script(Looped(step, component.first_embedding, cache).eval())
    kinds = {"f32": ov.Type.f32, "i64": ov.Type.i64}
    ports = [(ov.PartialShape(list(example[name].shape)), kinds[port.dtype]) for name, port in component.inputs.items()]
    model = ov.convert_model(script, input=ports)  # shares the weights of `script`
    for port, name in zip([*model.inputs, *model.outputs], [*component.inputs, *component.outputs], strict=True):
        port.get_tensor().set_names({name})
    to_f16(model)
    ov.save_model(model, target, compress_to_fp16=False)


def compiled_cost(xml: Path) -> dict[str, float]:
    """Seconds to compile a graph, and MB by which the process grew."""
    process = psutil.Process()
    before, start = process.memory_info().rss, time.perf_counter()
    request = ov.Core().compile_model(xml, "CPU", PROPERTIES).create_infer_request()
    seconds = time.perf_counter() - start
    assert request
    return {"compile_seconds": seconds, "resident_mb": (process.memory_info().rss - before) / 1e6}


def main(variant: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        loop = Path(folder, "loop.xml")
        alone(write_loop, variant / "checkpoint", loop)
        graphs = {"unrolled": variant / "fp16" / "ir" / "code_predictor.xml", "loop": loop}
        found: dict[str, dict[str, Any]] = {name: alone(compiled_cost, xml) for name, xml in graphs.items()}
        requests = {
            name: ov.Core().compile_model(xml, "CPU", PROPERTIES).create_infer_request() for name, xml in graphs.items()
        }
        calls = Component(Checkpoint(variant / "checkpoint")).calls(np.random.default_rng(1))
        seconds: dict[str, list[float]] = {name: [] for name in graphs}
        for run in range(RUNS):
            codes = []
            for name, request in requests.items():
                start = time.perf_counter()
                codes.append(request.infer(calls[run % 2])["codes"].copy())
                seconds[name].append(1000 * (time.perf_counter() - start))
            assert np.array_equal(*codes), "the two graphs draw different codes"
    for name in graphs:
        found[name] |= {"best_ms": min(seconds[name][2:]), "median_ms": median(seconds[name][2:])}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
