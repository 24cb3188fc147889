"""Adaptors: graphs for runtimes whose contract needs more than renaming the ports of a native graph.

An adaptor is a component like those of components.py, over the same networks but with different ports: such a runtime
does outside the graph, or step by step, what a native graph does inside. Ports are named as in the first contract that
has them; conf/layout renames them for the others. The precision policy is that of the component that it `adapts`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from model_src.checkpoint import Checkpoint
from model_src.config import TransformerConfig
from model_src.layers import Embedding, KeyValue, causal_mask, rotary
from pipeline.graphs.components import ANY, COMPONENTS, Call, Component, Port, cache_states, chosen, noise
from pipeline.graphs.fixed_shapes import STATIC
from pipeline.stage import PipelineError


class TalkerStep(Component):
    """A step of the talker, or a prefill, with logits and hidden states of every position."""

    adapts = "talker"

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.network = checkpoint.load("talker")
        self.states = cache_states(self.network.config)

    def results(self, hidden: Tensor, present: list[KeyValue]) -> tuple[Tensor, ...]:
        hidden = self.network.norm(hidden)
        return self.network.codec_head(hidden), hidden, *flat(present)

    def pieces(self, rng: np.random.Generator) -> Iterator[tuple[Call, np.ndarray]]:
        """A prefill and steps: the inputs that every contract has, and the positions [1, positions]."""
        for positions in np.split(np.arange(17)[None], (12, 15, 16), axis=1):
            yield step_inputs(rng, positions, self.network.config.hidden_size), positions


class TalkerWithRotary(TalkerStep):
    """The talker, told where it is by rotary cosines and sines."""

    name, outputs = "talker_with_rotary", ("logits", "hidden")

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        config = self.network.config
        self.inputs = {
            "inputs_embeds": Port((ANY, ANY, config.hidden_size)),
            "cos": Port((1, 1, ANY, config.head_dim)),
            "sin": Port((1, 1, ANY, config.head_dim)),
            "beam_idx": Port((ANY,), "i32"),
        }

    def forward(
        self, inputs_embeds: Tensor, cos: Tensor, sin: Tensor, beam_idx: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        past = chosen(state, beam_idx)
        return self.results(*self.network.decode(inputs_embeds, (cos, sin), mask_after(past, inputs_embeds), past))

    def calls(self, rng: np.random.Generator) -> list[Call]:
        return [common | rotary_inputs(positions, self.network.config) for common, positions in self.pieces(rng)]


class TalkerWithMask(TalkerStep):
    """The talker, told what it may attend to by an additive mask."""

    name, outputs = "talker_with_mask", ("logits", "last_hidden_state")

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.inputs = {
            "inputs_embeds": Port((ANY, ANY, self.network.config.hidden_size)),
            "attention_mask": Port((ANY, 1, ANY, ANY)),
            "position_ids": Port((3, ANY, ANY), "i64"),
            "beam_idx": Port((ANY,), "i32"),
        }

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, beam_idx: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        config = self.network.config
        # The three streams of the multimodal RoPE carry the same positions in speech.
        positions = rotary(position_ids[0], config.head_dim, config.rope_theta)
        return self.results(*self.network.decode(inputs_embeds, positions, attention_mask, chosen(state, beam_idx)))

    def calls(self, rng: np.random.Generator) -> list[Call]:
        return [
            common | {"attention_mask": mask_input(positions), "position_ids": np.stack([positions] * 3)}
            for common, positions in self.pieces(rng)
        ]


class CodeEmbeddingByStep(Component):
    """Codes of one residual group to their embeddings; the step, 0 for the second group of a frame, says which."""

    name, adapts, outputs = "code_embedding_by_step", "residual_code_embedding", ("embeddings",)

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.inputs = {"token_ids": Port((ANY, ANY), "i64"), "step_idx": Port((), "i64")}
        tables = [embedding.weight for embedding in checkpoint.load("code_predictor").embeddings]
        self.groups, self.codes = len(tables), tables[0].shape[0]
        self.table = Embedding.from_pretrained(torch.cat(tables))

    def forward(self, token_ids: Tensor, step_idx: Tensor) -> tuple[Tensor, ...]:
        return (self.table(token_ids + step_idx * self.codes),)

    def calls(self, rng: np.random.Generator) -> list[Call]:
        shapes = [(1, 1)] * (self.groups - 1) + [(1, 25)]
        return [
            {"token_ids": rng.integers(0, self.codes, shape), "step_idx": np.array(step)}
            for step, shape in enumerate(shapes)
        ]


class CodeStep(Component):
    """One position of the code predictor, or the two of its prefill; the caller samples, and resets it every frame."""

    adapts = "code_predictor"

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.network = checkpoint.load("code_predictor")
        self.groups, self.codes = len(self.network.heads), self.network.config.vocab_size
        # One table of all heads' rows, so that a step reads only those of its own head.
        self.heads = Embedding.from_pretrained(torch.cat([head.weight for head in self.network.heads]))
        del self.network.heads, self.network.embeddings
        self.states = cache_states(self.network.config)

    def logits(self, hidden: Tensor, step: Tensor) -> Tensor:
        """Logits [batch, positions, codes] of the head for a step; step 0 is for the second group of a frame."""
        return hidden @ self.heads(step * self.codes + torch.arange(self.codes)).T

    def frame(self, rng: np.random.Generator) -> Iterator[tuple[Call, np.ndarray, np.ndarray]]:
        """The steps of a frame: the inputs that every contract has, the positions [1, positions], the step []."""
        positions = np.split(np.arange(self.groups + 1)[None], range(2, self.groups + 1), axis=1)
        for step, here in enumerate(positions):
            yield step_inputs(rng, here, self.config.talker_config.hidden_size), here, np.array(step)


class CodeStepWithRotary(CodeStep):
    """A step of the code predictor, told where it is by rotary cosines and sines."""

    name, outputs = "code_step_with_rotary", ("logits", "hidden")

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        head_dim = self.network.config.head_dim
        self.inputs = {
            "inputs_embeds": Port((ANY, ANY, self.config.talker_config.hidden_size)),
            "cos": Port((1, 1, ANY, head_dim)),
            "sin": Port((1, 1, ANY, head_dim)),
            "generation_steps": Port((), "i64"),
            "beam_idx": Port((ANY,), "i32"),
        }

    def forward(
        self,
        inputs_embeds: Tensor,
        cos: Tensor,
        sin: Tensor,
        generation_steps: Tensor,
        beam_idx: Tensor,
        *state: Tensor,
    ) -> tuple[Tensor, ...]:
        past = chosen(state, beam_idx)
        hidden, present = self.network.run(inputs_embeds, (cos, sin), mask_after(past, inputs_embeds), past)
        return self.logits(hidden, generation_steps), hidden, *flat(present)

    def calls(self, rng: np.random.Generator) -> list[Call]:
        return [
            common | rotary_inputs(positions, self.network.config) | {"generation_steps": step}
            for common, positions, step in self.frame(rng)
        ]


class CodeStepWithMask(CodeStep):
    """A step of the code predictor, told what it may attend to by an additive mask."""

    name, outputs = "code_step_with_mask", ("logits", "last_hidden_state")

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.inputs = {
            "inputs_embeds": Port((ANY, ANY, self.config.talker_config.hidden_size)),
            "attention_mask": Port((ANY, 1, ANY, ANY)),
            "position_ids": Port((ANY, ANY), "i64"),
            "step": Port((), "i64"),
            "beam_idx": Port((ANY,), "i32"),
        }

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        step: Tensor,
        beam_idx: Tensor,
        *state: Tensor,
    ) -> tuple[Tensor, ...]:
        positions = rotary(position_ids, self.network.config.head_dim, self.network.config.rope_theta)
        hidden, present = self.network.run(inputs_embeds, positions, attention_mask, chosen(state, beam_idx))
        return self.logits(hidden, step), hidden, *flat(present)

    def calls(self, rng: np.random.Generator) -> list[Call]:
        return [
            common | {"attention_mask": mask_input(positions), "position_ids": positions, "step": step}
            for common, positions, step in self.frame(rng)
        ]


class WholeSpeechDecoder(Component):
    """Frames to samples without a state, for callers that would never reset one."""

    name, adapts, outputs = "whole_speech_decoder", "speech_decoder", ("waveform",)

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.network = checkpoint.load("speech_decoder")
        self.inputs = {"codes": Port((ANY, self.network.config.num_quantizers, ANY), "i64")}

    def forward(self, codes: Tensor) -> tuple[Tensor, ...]:
        waveform, _ = self.network(codes)
        return (waveform,)

    def calls(self, rng: np.random.Generator) -> list[Call]:
        config = self.network.config
        return [
            {"codes": rng.integers(0, config.codebook_size, (1, config.num_quantizers, frames))}
            for frames in (25, 1, 100)
        ]


class SpeechEncoderByGroup(Component):
    """Reference audio with a channel to codes, one row for each group."""

    name, adapts, outputs, kinds = "speech_encoder_by_group", "speech_encoder", ("audio_codes",), ("base",)

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.inputs = {"input_values": Port((ANY, 1, ANY))}
        self.network = checkpoint.load("speech_encoder")

    def forward(self, input_values: Tensor) -> tuple[Tensor, ...]:
        return (self.network(input_values[:, 0]).transpose(1, 2),)

    def calls(self, rng: np.random.Generator) -> list[Call]:
        rate = self.config.speech_tokenizer.encode_downsample_rate
        return [{"input_values": noise(rng, samples)[:, None]} for samples in (12 * rate, 7 * rate - 1)]


class MelSpeakerEncoder(Component):
    """Mel features to an x-vector."""

    name, adapts, outputs, kinds = "mel_speaker_encoder", "speaker_encoder", ("embedding",), ("base",)

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.network = checkpoint.load("speaker_encoder")
        self.inputs = {"mels": Port((ANY, ANY, self.network.mel.filters.shape[0]))}

    def forward(self, mels: Tensor) -> tuple[Tensor, ...]:
        return (self.network.embed(mels),)

    def calls(self, rng: np.random.Generator) -> list[Call]:
        audio = [torch.from_numpy(noise(rng, samples)) for samples in (24_000, 31_111)]
        return [{"mels": self.network.mel(samples).numpy()} for samples in audio]


def mask_after(past: list[KeyValue], inputs_embeds: Tensor) -> Tensor:
    """The causal mask of inputs [batch, positions, hidden] that follow `past`."""
    seen = past[0][0].shape[2]
    keys = torch.arange(seen + inputs_embeds.shape[1])
    return causal_mask(keys[None, seen:], keys)


def flat(present: list[KeyValue]) -> list[Tensor]:
    """Keys and values of every layer, in the order of `cache_states`."""
    return [tensor for cache in present for tensor in cache]


def step_inputs(rng: np.random.Generator, positions: np.ndarray, width: int) -> Call:
    """Embeddings for positions [1, positions], and the one beam."""
    embeds = rng.standard_normal((*positions.shape, width), dtype=np.float32)
    return {"inputs_embeds": embeds, "beam_idx": np.zeros(1, np.int32)}


def rotary_inputs(positions: np.ndarray, config: TransformerConfig) -> Call:
    """The cosines and sines of positions [1, positions]."""
    cos, sin = rotary(torch.from_numpy(positions), config.head_dim, config.rope_theta)
    return {"cos": cos.numpy(), "sin": sin.numpy()}


def mask_input(positions: np.ndarray) -> np.ndarray:
    """The additive causal mask [1, 1, positions, seen so far] of positions [1, positions]."""
    return causal_mask(torch.from_numpy(positions), torch.arange(int(positions.max()) + 1)).numpy()


ADAPTORS: dict[str, type[Component]] = {
    adaptor.name: adaptor
    for adaptor in (
        TalkerWithRotary,
        TalkerWithMask,
        CodeEmbeddingByStep,
        CodeStepWithRotary,
        CodeStepWithMask,
        WholeSpeechDecoder,
        SpeechEncoderByGroup,
        MelSpeakerEncoder,
    )
} | STATIC
# Everything that an IR file can hold.
GRAPHS = COMPONENTS | ADAPTORS


def graph_names(layout: DictConfig, kind: str) -> list[str]:
    """The graphs that build, export and compress make for a layout of conf/layout and a checkpoint's kind.

    For the native layout these are the native components; another layout reuses them and only adds its adaptors.
    Raises PipelineError for an unknown component.
    """
    unknown = sorted(set(layout.graphs) - set(GRAPHS))
    if unknown:
        raise PipelineError(
            f"conf/layout/{layout.name}.yaml: unknown component {unknown[0]!r}; known: {', '.join(GRAPHS)}"
        )
    components = COMPONENTS if layout.name == "native" else ADAPTORS
    return [name for name in layout.graphs if name in components and kind in components[name].kinds]


def build_graph(name: str, checkpoint: Checkpoint, layout: DictConfig) -> Component:
    """A component over a checkpoint's networks, of the sizes that the layout gives it."""
    return GRAPHS[name](checkpoint, **layout.graphs[name].get("sizes", {}))
