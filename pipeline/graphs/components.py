"""The components of a bundle, each declared once: its network, ports, state, kinds, and the inputs that test it.

A component is what one IR file holds: a module over the networks of model_src that takes its inputs and, where it is
stateful, the state before the call, and returns its outputs and the state after it. `build` records what it computes,
`export` turns it into a graph and compares, `compress`, `bundle` and the tests read the same declaration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from model_src.checkpoint import Checkpoint
from model_src.config import TransformerConfig
from model_src.layers import Embedding, KeyValue
from pipeline.stage import KINDS

Call = dict[str, np.ndarray]
ANY = -1  # a dimension that the caller chooses; in a state, one that grows from 0


@dataclass(frozen=True)
class Port:
    shape: tuple[int, ...]
    dtype: str = "f32"


class Component(nn.Module):
    """One graph. Subclasses take a checkpoint and load the networks they need from it.

    `forward(*inputs, *state)` returns `(*outputs, *new state)`, inputs and states in the order of `inputs` and
    `states`. The first dimension of every port and state is the batch unless the port has one element.
    """

    name: ClassVar[str]
    outputs: tuple[str, ...]
    kinds: ClassVar[tuple[str, ...]] = KINDS
    adapts: ClassVar[str | None] = None  # of an adaptor: the component whose precision policy applies
    merge_products: ClassVar[bool] = False  # whether query, key and value, gate and up are one product each

    inputs: dict[str, Port]
    states: dict[str, tuple[int, ...]]

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.config = checkpoint.config
        self.states = {}

    def calls(self, rng: np.random.Generator) -> list[Call]:
        """Inputs of consecutive calls that test the graph; of a stateful one, the second call is traced."""
        raise NotImplementedError

    def silence(self) -> list[Tensor]:
        """The state before the first call, for a batch of one: zeros, of length 0 where it grows."""
        return [torch.zeros([1, *(max(size, 0) for size in shape[1:])]) for shape in self.states.values()]

    @torch.inference_mode()
    def run(self, calls: list[Call]) -> tuple[list[Call], list[Tensor]]:
        """The outputs of consecutive calls, the first of which starts from silence, and the state after them."""
        state, results = self.silence(), []
        for call in calls:
            values = self(*(torch.from_numpy(call[name]) for name in self.inputs), *state)
            results.append({name: value.numpy() for name, value in zip(self.outputs, values, strict=False)})
            state = list(values[len(self.outputs) :])
        return results, state


class TextEmbedding(Component):
    """Text ids to talker inputs. The projection depends on the token alone, so it is folded into the table."""

    name, outputs = "text_embedding", ("embeddings",)

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.inputs = {"token_ids": Port((ANY, ANY), "i64")}
        network = checkpoint.load("text_embedding")
        talker = self.config.talker_config
        table = torch.empty(talker.text_vocab_size, talker.hidden_size)
        start = 0
        with torch.inference_mode():
            for rows in checkpoint.rows("talker.model.text_embedding.weight", 8192):
                table[start : start + len(rows)] = network.project(rows.float())
                start += len(rows)
        self.table = Embedding.from_pretrained(table)

    def forward(self, token_ids: Tensor) -> tuple[Tensor, ...]:
        return (self.table(token_ids),)

    def calls(self, rng: np.random.Generator) -> list[Call]:
        return [{"token_ids": rng.integers(0, self.table.num_embeddings, (1, 64))}]


class CodecEmbedding(Component):
    """First codes and control ids to talker inputs."""

    name, outputs = "codec_embedding", ("embeddings",)

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.inputs = {"token_ids": Port((ANY, ANY), "i64")}
        self.table = checkpoint.load("codec_embedding")

    def forward(self, token_ids: Tensor) -> tuple[Tensor, ...]:
        return (self.table(token_ids),)

    def calls(self, rng: np.random.Generator) -> list[Call]:
        return [{"token_ids": rng.integers(0, self.table.num_embeddings, (1, 64))}]


class ResidualCodeEmbedding(Component):
    """Codes of the groups after the first to the sum of their embeddings, for reference frames: one flat table."""

    name, outputs, kinds = "residual_code_embedding", ("embeddings",), ("base",)

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        tables = [embedding.weight for embedding in checkpoint.load("code_predictor").embeddings]
        self.codes = tables[0].shape[0]
        self.inputs = {"codes": Port((ANY, ANY, len(tables)), "i64")}
        self.table = Embedding.from_pretrained(torch.cat(tables))
        self.register_buffer("starts", torch.arange(len(tables)) * self.codes)

    def forward(self, codes: Tensor) -> tuple[Tensor, ...]:
        return (self.table(codes + self.starts).sum(2),)

    def calls(self, rng: np.random.Generator) -> list[Call]:
        return [{"codes": rng.integers(0, self.codes, (1, 25, len(self.starts)))}]


class Talker(Component):
    """One step of the talker, or a prefill; the KV cache is the state, gathered by `beam_idx`."""

    name, outputs, merge_products = "talker", ("logits", "hidden"), True

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        talker = self.config.talker_config
        self.network = checkpoint.load("talker")
        self.inputs = {
            "inputs_embeds": Port((ANY, ANY, talker.hidden_size)),
            "position_ids": Port((ANY, ANY), "i64"),
            "beam_idx": Port((ANY,), "i32"),
        }
        self.states = cache_states(talker)

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, beam_idx: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        logits, hidden, present = self.network.last(inputs_embeds, position_ids, chosen(state, beam_idx))
        return logits, hidden, *flat(present)

    def calls(self, rng: np.random.Generator) -> list[Call]:
        width, calls, start = self.config.talker_config.hidden_size, [], 0
        for length in (12, 3, 1, 1):
            embeds = 0.05 * rng.standard_normal((1, length, width), dtype=np.float32)
            positions = np.arange(start, start + length)[None]
            calls.append({"inputs_embeds": embeds, "position_ids": positions, "beam_idx": np.zeros(1, np.int32)})
            start += length
        return calls


class CodePredictor(Component):
    """A whole frame in one call: hidden state and first code in, sixteen codes and their summed embedding out."""

    name, outputs, merge_products = "code_predictor", ("codes", "embeddings"), True
    candidates: int | None = None  # any code may be drawn

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.network = checkpoint.load("code_predictor")
        self.first_embedding = checkpoint.load("codec_embedding")
        groups, codes = len(self.network.heads), self.network.config.vocab_size
        self.inputs = {
            "talker_hidden": Port((ANY, 1, self.config.talker_config.hidden_size)),
            "first_code": Port((ANY, 1), "i64"),
            "noise": Port((ANY, groups, codes)),
            "temperature": Port((1,)),
            "top_k": Port((1,), "i64"),
            "top_p": Port((1,)),
        }

    def forward(
        self,
        talker_hidden: Tensor,
        first_code: Tensor,
        noise: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
    ) -> tuple[Tensor, ...]:
        first = self.first_embedding(first_code)
        return self.network.frame(talker_hidden, first_code, first, noise, temperature, top_k, top_p, self.candidates)

    def calls(self, rng: np.random.Generator) -> list[Call]:
        shape, codes = self.inputs["noise"].shape[1:], self.network.config.vocab_size
        greedy = np.ones((1, *shape), np.float32)
        sampled = rng.standard_exponential((1, *shape), dtype=np.float32)
        width = self.config.talker_config.hidden_size
        return [
            {
                "talker_hidden": rng.standard_normal((1, 1, width), dtype=np.float32),
                "first_code": rng.integers(0, codes, (1, 1)),
                "noise": noise,
                "temperature": np.array([0.9], np.float32),
                "top_k": np.array([top_k]),
                "top_p": np.array([top_p], np.float32),
            }
            for noise, top_k, top_p in ((greedy, 1, 1.0), (sampled, 50, 1.0), (sampled, codes, 0.8))
        ]


class SpeechDecoder(Component):
    """Frames to samples in pieces of any length; convolution tails and the attention window are its state."""

    name, outputs = "speech_decoder", ("waveform",)
    pieces: ClassVar[tuple[int, ...]] = (3, 4, 1, 80, 2)  # frames of the calls that test it

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.network = checkpoint.load("speech_decoder")
        groups = self.network.config.num_quantizers
        self.inputs = {"codes": Port((ANY, groups, ANY), "i64")}
        with torch.inference_mode():
            _, present = self.network(torch.zeros(1, groups, 1, dtype=torch.int64))
        # Keys and values (4-D) grow up to their window, convolution tails (3-D) have one length.
        shapes = [(ANY, *t.shape[1:]) if t.ndim == 3 else (ANY, t.shape[1], ANY, t.shape[3]) for t in present]
        self.states = {f"past.{index}": shape for index, shape in enumerate(shapes)}

    def forward(self, codes: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        waveform, present = self.network(codes, state)
        return waveform, *present

    def calls(self, rng: np.random.Generator) -> list[Call]:
        config = self.network.config
        return [
            {"codes": rng.integers(0, config.codebook_size, (1, config.num_quantizers, frames))}
            for frames in self.pieces
        ]


class SpeechEncoder(Component):
    """Reference audio to codes."""

    name, outputs = "speech_encoder", ("codes",)
    kinds: ClassVar[tuple[str, ...]] = ("base",)

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.inputs = {"audio": Port((ANY, ANY))}
        self.network = checkpoint.load("speech_encoder")

    def forward(self, audio: Tensor) -> tuple[Tensor, ...]:
        return (self.network(audio),)

    def calls(self, rng: np.random.Generator) -> list[Call]:
        rate = self.config.speech_tokenizer.encode_downsample_rate
        return [{"audio": noise(rng, samples)} for samples in (12 * rate, 20 * rate + 1, 7 * rate - 1)]


class SpeakerEncoder(Component):
    """Reference audio to an x-vector; the mel features are computed inside."""

    name, outputs, kinds = "speaker_encoder", ("embedding",), ("base",)

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.inputs = {"audio": Port((ANY, ANY))}
        self.network = checkpoint.load("speaker_encoder")

    def forward(self, audio: Tensor) -> tuple[Tensor, ...]:
        return (self.network(audio),)

    def calls(self, rng: np.random.Generator) -> list[Call]:
        return [{"audio": noise(rng, samples)} for samples in (24_000, 31_111)]


COMPONENTS: dict[str, type[Component]] = {
    component.name: component
    for component in (
        TextEmbedding,
        CodecEmbedding,
        ResidualCodeEmbedding,
        Talker,
        CodePredictor,
        SpeechDecoder,
        SpeechEncoder,
        SpeakerEncoder,
    )
}


def cache_states(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """The states of a KV cache that grows: keys and values of every layer."""
    shape = (ANY, config.num_key_value_heads, ANY, config.head_dim)
    layers = range(config.num_hidden_layers)
    return {f"past_key_values.{layer}.{kind}": shape for layer in layers for kind in ("key", "value")}


def chosen(state: Sequence[Tensor], beam_idx: Tensor) -> list[KeyValue]:
    """The rows `beam_idx` [batch] of the cached keys and values, by layer.

    Without this gather, OpenVINO's CPU plugin does not keep the cache inside its attention node.
    """
    rows = [tensor.index_select(0, beam_idx) for tensor in state]
    return list(zip(rows[::2], rows[1::2], strict=True))


def flat(present: Sequence[KeyValue]) -> list[Tensor]:
    """Keys and values of every layer, in the order of `cache_states`."""
    return [tensor for cache in present for tensor in cache]


def noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Audio [1, samples] that no part of the network finds silent: noise whose loudness rises and falls."""
    loudness = 0.2 * (1 + np.sin(np.arange(samples, dtype=np.float32) / 3000))
    return (loudness * rng.standard_normal((1, samples), dtype=np.float32)).clip(-1, 1).astype(np.float32)
