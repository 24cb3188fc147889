"""Adaptors: graphs for runtimes whose contract needs more than renaming the ports of a native graph.

An adaptor is a component like those of components.py, over the same networks but with different ports: such a runtime
does outside the graph, or step by step, what a native graph does inside. Ports are named as in the first contract that
has them; conf/layout renames them for the others. The precision policy is that of the component that it `adapts`.
"""

from typing import ClassVar

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from model_src.checkpoint import Checkpoint
from model_src.layers import Embedding, KeyValue, causal_mask, rotary
from pipeline.graphs.components import (
    ANY,
    COMPONENTS,
    Call,
    Component,
    Port,
    SpeakerEncoder,
    SpeechDecoder,
    SpeechEncoder,
    cache_states,
    chosen,
    flat,
)
from pipeline.graphs.fixed_shapes import STATIC
from pipeline.stage import KINDS, PipelineError


class Step(Component):
    """Some positions of a network with a KV cache, as a runtime's contract has them.

    A contract is a subclass that says by what `ports` and by what values it is `told` where the positions are.
    """

    adapts: ClassVar[str]
    step_port: ClassVar[str]  # of the code predictor, the number of the step in its frame

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.network = checkpoint.load(self.adapts)
        self.states = cache_states(self.network.config)
        embeds = Port((ANY, ANY, self.config.talker_config.hidden_size))
        self.inputs = {"inputs_embeds": embeds, **self.ports(), "beam_idx": Port((ANY,), "i32")}

    def ports(self) -> dict[str, Port]:
        """The inputs between embeddings and beam."""
        raise NotImplementedError

    def told(self, positions: np.ndarray) -> Call:
        """The values of `ports` for positions [1, positions]."""
        raise NotImplementedError

    def call(self, rng: np.random.Generator, positions: np.ndarray) -> Call:
        """Inputs for positions [1, positions] of the one beam."""
        width = self.config.talker_config.hidden_size
        embeds = rng.standard_normal((*positions.shape, width), dtype=np.float32)
        return {"inputs_embeds": embeds, "beam_idx": np.zeros(1, np.int32), **self.told(positions)}


class WithRotary(Step):
    """OpenArc's contract: rotary cosines and sines."""

    outputs, step_port = ("logits", "hidden"), "generation_steps"

    def ports(self) -> dict[str, Port]:
        return dict.fromkeys(("cos", "sin"), Port((1, 1, ANY, self.network.config.head_dim)))

    def told(self, positions: np.ndarray) -> Call:
        config = self.network.config
        cos, sin = rotary(torch.from_numpy(positions), config.head_dim, config.rope_theta)
        return {"cos": cos.numpy(), "sin": sin.numpy()}


class WithMask(Step):
    """The contract of openvino.genai: an additive mask and the positions."""

    outputs, step_port = ("logits", "last_hidden_state"), "step"

    def ports(self) -> dict[str, Port]:
        return {"attention_mask": Port((ANY, 1, ANY, ANY)), "position_ids": Port((ANY, ANY), "i64")}

    def told(self, positions: np.ndarray) -> Call:
        mask = causal_mask(torch.from_numpy(positions), torch.arange(int(positions.max()) + 1))
        return {"attention_mask": mask.numpy(), "position_ids": positions}


class TalkerStep(Step):
    """A step of the talker, or a prefill, with logits and hidden states of every position."""

    adapts = "talker"

    def results(self, hidden: Tensor, present: list[KeyValue]) -> tuple[Tensor, ...]:
        hidden = self.network.norm(hidden)
        return self.network.codec_head(hidden), hidden, *flat(present)

    def calls(self, rng: np.random.Generator) -> list[Call]:
        return [self.call(rng, positions) for positions in np.split(np.arange(17)[None], (12, 15, 16), axis=1)]


class TalkerWithRotary(TalkerStep, WithRotary):
    name = "talker_with_rotary"

    def forward(
        self, inputs_embeds: Tensor, cos: Tensor, sin: Tensor, beam_idx: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        past = chosen(state, beam_idx)
        return self.results(*self.network.decode(inputs_embeds, (cos, sin), mask_after(past, inputs_embeds), past))


class TalkerWithMask(TalkerStep, WithMask):
    """The three streams of the multimodal RoPE carry the same positions in speech."""

    name = "talker_with_mask"

    def ports(self) -> dict[str, Port]:
        return super().ports() | {"position_ids": Port((3, ANY, ANY), "i64")}

    def told(self, positions: np.ndarray) -> Call:
        return super().told(positions) | {"position_ids": np.stack([positions] * 3)}

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, beam_idx: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        config = self.network.config
        positions = rotary(position_ids[0], config.head_dim, config.rope_theta)
        return self.results(*self.network.decode(inputs_embeds, positions, attention_mask, chosen(state, beam_idx)))


class CodeStep(Step):
    """One position of the code predictor, or the two of its prefill; the caller samples, and resets it every frame."""

    adapts = "code_predictor"

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.groups, self.codes = len(self.network.heads), self.network.config.vocab_size
        # One table of all heads' rows, so that a step reads only those of its own head.
        self.heads = Embedding.from_pretrained(torch.cat([head.weight for head in self.network.heads]))
        del self.network.heads, self.network.embeddings

    def ports(self) -> dict[str, Port]:
        return super().ports() | {self.step_port: Port((), "i64")}

    def logits(self, hidden: Tensor, step: Tensor) -> Tensor:
        """Logits [batch, positions, codes] of the head for a step; step 0 is for the second group of a frame."""
        return hidden @ self.heads(step * self.codes + torch.arange(self.codes)).T

    def calls(self, rng: np.random.Generator) -> list[Call]:
        positions = np.split(np.arange(self.groups + 1)[None], range(2, self.groups + 1), axis=1)
        return [self.call(rng, here) | {self.step_port: np.array(step)} for step, here in enumerate(positions)]


class CodeStepWithRotary(CodeStep, WithRotary):
    name = "code_step_with_rotary"

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


class CodeStepWithMask(CodeStep, WithMask):
    name = "code_step_with_mask"

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


class WholeSpeechDecoder(SpeechDecoder):
    """Frames to samples without a state, for callers that would never reset one."""

    name, adapts, pieces = "whole_speech_decoder", "speech_decoder", (25, 1, 100)

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.states = {}

    def forward(self, codes: Tensor) -> tuple[Tensor, ...]:
        waveform, _ = self.network(codes)
        return (waveform,)


class SpeechEncoderByGroup(SpeechEncoder):
    """Reference audio with a channel to codes, one row for each group; in every kind, as optimum-intel loads it."""

    name, adapts, outputs, kinds = "speech_encoder_by_group", "speech_encoder", ("audio_codes",), KINDS

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.inputs = {"input_values": Port((ANY, 1, ANY))}

    def forward(self, input_values: Tensor) -> tuple[Tensor, ...]:
        return (self.network(input_values[:, 0]).transpose(1, 2),)

    def calls(self, rng: np.random.Generator) -> list[Call]:
        return [{"input_values": call["audio"][:, None]} for call in super().calls(rng)]


class MelSpeakerEncoder(SpeakerEncoder):
    """Mel features to an x-vector."""

    name, adapts = "mel_speaker_encoder", "speaker_encoder"

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.inputs = {"mels": Port((ANY, ANY, self.network.mel.filters.shape[0]))}

    def forward(self, mels: Tensor) -> tuple[Tensor, ...]:
        return (self.network.embed(mels),)

    def calls(self, rng: np.random.Generator) -> list[Call]:
        return [{"mels": self.network.mel(torch.from_numpy(call["audio"])).numpy()} for call in super().calls(rng)]


def mask_after(past: list[KeyValue], inputs_embeds: Tensor) -> Tensor:
    """The causal mask of inputs [batch, positions, hidden] that follow `past`."""
    seen = past[0][0].shape[2]
    keys = torch.arange(seen + inputs_embeds.shape[1])
    return causal_mask(keys[None, seen:], keys)


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
