"""Graphs with fixed shapes and no state, for NPU: the caller keeps what a stateful graph remembers, and passes it in.

Sizes are set in conf/layout. Every call has exactly as many positions or frames as the graph was built for: a caller
with fewer pads them, reads only the results of the real ones, and keeps no state of the padding.
"""

import numpy as np
import torch
from torch import Tensor

from model_src.checkpoint import Checkpoint
from model_src.layers import Attention, KeyValue, rotary, rotate
from model_src.speech_decoder import History
from pipeline.graphs.components import Call, CodePredictor, Component, Port, cache_states

UNSEEN = float("-inf")


class StaticTalker(Component):
    """Some positions of the talker after `filled` slots of a cache; returns the keys and values that they add."""

    name, adapts = "static_talker", "talker"

    def __init__(self, checkpoint: Checkpoint, positions: int, cache: int) -> None:
        super().__init__(checkpoint)
        self.network = checkpoint.load("talker")
        talker = self.network.config
        shape = (1, talker.num_key_value_heads, cache, talker.head_dim)
        past = list(cache_states(talker))
        self.inputs = {
            "inputs_embeds": Port((1, positions, talker.hidden_size)),
            "filled": Port((1,), "i64"),
            **dict.fromkeys(past, Port(shape)),
        }
        self.outputs = ("logits", "hidden", *(name.replace("past_key_values", "present") for name in past))

    def forward(self, inputs_embeds: Tensor, filled: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        talker, new = self.network.config, torch.arange(inputs_embeds.shape[1])
        positions = rotary((filled + new)[None], talker.head_dim, talker.rope_theta)
        slots = torch.arange(past[0].shape[2])
        masks = torch.where(slots < filled, 0.0, UNSEEN), torch.where(new[:, None] >= new, 0.0, UNSEEN)
        hidden, added = inputs_embeds, list[Tensor]()
        for layer, keys, values in zip(self.network.layers, past[::2], past[1::2], strict=True):
            attended, present = attend_apart(
                layer.self_attn, layer.input_layernorm(hidden), positions, masks, (keys, values)
            )
            hidden = hidden + attended
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            added += present
        hidden = self.network.norm(hidden)
        return self.network.codec_head(hidden), hidden, *added

    def calls(self, rng: np.random.Generator) -> list[Call]:
        filled = np.array([self.inputs["past_key_values.0.key"].shape[2] // 3])
        drawn = {name: draw(rng, port) for name, port in self.inputs.items() if name != "filled"}
        return [drawn | {"filled": filled}]


class StaticCodePredictor(CodePredictor):
    """A whole frame in one call; each code is one of the `candidates` likeliest of its group."""

    name, adapts = "static_code_predictor", "code_predictor"

    def __init__(self, checkpoint: Checkpoint, candidates: int) -> None:
        super().__init__(checkpoint)
        self.candidates = candidates
        self.inputs = {name: Port((1, *port.shape[1:]), port.dtype) for name, port in self.inputs.items()}

    def calls(self, rng: np.random.Generator) -> list[Call]:
        return [call for call in super().calls(rng) if call["top_k"] <= self.candidates]


class StaticSpeechDecoder(Component):
    """A few frames to samples; the past is what the previous call returned, zeros at the start.

    `seen` is the number of frames decoded since the start: the attention ignores the slots of the past before them.
    """

    name, adapts = "static_speech_decoder", "speech_decoder"

    def __init__(self, checkpoint: Checkpoint, frames: int) -> None:
        super().__init__(checkpoint)
        self.network = checkpoint.load("speech_decoder")
        config = self.network.config
        codes = torch.zeros(1, config.num_quantizers, config.sliding_window, dtype=torch.int64)
        with torch.inference_mode():
            _, present = self.network(codes)  # after a whole window, every part of the past is full
        past = {f"past.{index}": Port(tuple(tensor.shape)) for index, tensor in enumerate(present)}
        shape = (1, config.num_quantizers, frames)
        self.inputs = {"codes": Port(shape, "i64"), "seen": Port((1,), "i64"), **past}
        self.outputs = ("waveform", *(name.replace("past", "present") for name in past))

    def forward(self, codes: Tensor, seen: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        waveform, present = self.network.decode(codes, History(past, seen))
        return waveform, *present

    def calls(self, rng: np.random.Generator) -> list[Call]:
        config = self.network.config
        drawn = {name: draw(rng, port) for name, port in self.inputs.items() if name.startswith("past")}
        codes = rng.integers(0, config.codebook_size, self.inputs["codes"].shape)
        return [drawn | {"codes": codes, "seen": np.array([seen])} for seen in (5, config.sliding_window + 9)]


def attend_apart(
    attention: Attention, x: Tensor, positions: tuple[Tensor, Tensor], masks: tuple[Tensor, Tensor], past: KeyValue
) -> tuple[Tensor, KeyValue]:
    """As Attention over the past and x [1, positions, size], but the cache is read where it lies: neither joined with
    the new keys and values, which are returned alone, nor repeated for the query heads that share it.

    `masks` are those of the past [slots] and of the new positions [positions, positions].
    """
    queries, keys, values = attention.project(x)
    queries, keys = rotate(queries, *positions), rotate(keys, *positions)
    # Query heads that share keys become queries of one head.
    shared = queries.reshape(1, attention.kv_heads, -1, attention.head_dim) * attention.head_dim**-0.5
    before = shared @ past[0].transpose(2, 3) + masks[0]
    among = shared @ keys.transpose(2, 3) + masks[1].repeat(attention.heads // attention.kv_heads, 1)
    slots, weights = past[0].shape[2], torch.cat((before, among), dim=-1).softmax(-1)
    mixed = weights[..., :slots] @ past[1] + weights[..., slots:] @ values
    return attention.o_proj(mixed.reshape(queries.shape).transpose(1, 2).flatten(2)), (keys, values)


def draw(rng: np.random.Generator, port: Port) -> np.ndarray:
    """Noise of a port's shape, as loud as activations are."""
    return 0.3 * rng.standard_normal(port.shape, dtype=np.float32)


STATIC: dict[str, type[Component]] = {
    graph.name: graph for graph in (StaticTalker, StaticCodePredictor, StaticSpeechDecoder)
}
