"""Exported graphs under test: compiled for exact arithmetic, with calls and the networks' outputs for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_src.checkpoint import Checkpoint
from model_src.code_predictor import CodePredictor
from pipeline.graphs.teacher_forcing import EXACT
from qwen3_tts_ov.sampling import exponential
from tests.official import snr

Call = dict[str, NDArray]
BATCH = 2
LARGE = 4096  # elements; smaller constants are not weights that matter
# The networks of model_src whose parameters each component contains.
NETWORKS = {
    "text_embedding": ["text_embedding"],
    "codec_embedding": ["codec_embedding"],
    "talker": ["talker"],
    "code_predictor": ["code_predictor", "codec_embedding"],
    "speech_decoder": ["speech_decoder"],
    "speech_encoder": ["speech_encoder"],
    "speaker_encoder": ["speaker_encoder"],
}


@cache
def compiled(xml: Path) -> ov.CompiledModel:
    """A graph for the CPU, in float32 throughout."""
    return ov.Core().compile_model(xml, "CPU", EXACT)


def request(xml: Path) -> ov.InferRequest:
    """A fresh infer request, its state empty."""
    return compiled(xml).create_infer_request()


def answers(request: ov.InferRequest, calls: Iterable[Call]) -> list[Call]:
    """The outputs of consecutive calls, starting from an empty state."""
    request.reset_state()
    results = []
    for call in calls:
        found = request.infer(call)
        results.append({name: value for port, value in found.items() for name in port.names})
    return results


def assert_equal(found: Sequence[Call], expected: Sequence[Call], decibels: float = 90) -> None:
    """Asserts equal integers, and floats with a signal-to-noise ratio of at least `decibels`."""
    for ours, theirs in zip(found, expected, strict=True):
        for port, value in theirs.items():
            assert ours[port].shape == value.shape, port
            if np.issubdtype(value.dtype, np.integer):
                np.testing.assert_array_equal(ours[port], value, err_msg=port)
            else:
                assert snr(value, ours[port]) >= decibels, port


def constants(xml: Path) -> dict[str, int]:
    """Number of elements in the large constants of a graph, by element type."""
    counts: dict[str, int] = {}
    for node in ov.Core().read_model(xml).get_ops():
        if node.get_type_name() == "Constant" and (size := int(np.prod(node.get_output_shape(0)))) >= LARGE:
            kind = node.get_element_type().get_type_name()
            counts[kind] = counts.get(kind, 0) + size
    return counts


def layer_type(node: ov.Node) -> str:
    """The plugin's layer type of a node of a runtime model."""
    return node.get_rt_info()["layerType"].value


def frame_inputs(network: CodePredictor, width: int, batch: int, rng: np.random.Generator, **rules: float) -> Call:
    """The code predictor's inputs for `batch` frames: hidden states [batch, 1, width], random noise and the rest."""
    groups, codes = len(network.heads), network.config.vocab_size
    chosen = {"temperature": 0.9, "top_k": 50, "top_p": 1.0} | rules
    return {
        "talker_hidden": rng.standard_normal((batch, 1, width), dtype=np.float32),
        "first_code": rng.integers(0, codes, (batch, 1)),
        "noise": exponential(rng, (batch, groups, codes)),
        "temperature": np.array([chosen["temperature"]], np.float32),
        "top_k": np.array([chosen["top_k"]], np.int64),
        "top_p": np.array([chosen["top_p"]], np.float32),
    }


# One function per component: consecutive calls, each for a batch of two, and the networks' own outputs. A stateful
# graph is called piece by piece; its network processes everything in one pass.
Example = Callable[[Checkpoint, np.random.Generator], tuple[list[Call], list[Call]]]


def text_embedding(checkpoint: Checkpoint, rng: np.random.Generator) -> tuple[list[Call], list[Call]]:
    ids = rng.integers(0, checkpoint.config.talker_config.text_vocab_size, (BATCH, 50))
    return [{"token_ids": ids}], [{"embeddings": checkpoint.load("text_embedding")(torch.from_numpy(ids)).numpy()}]


def codec_embedding(checkpoint: Checkpoint, rng: np.random.Generator) -> tuple[list[Call], list[Call]]:
    ids = rng.integers(0, checkpoint.config.talker_config.vocab_size, (BATCH, 50))
    return [{"token_ids": ids}], [{"embeddings": checkpoint.load("codec_embedding")(torch.from_numpy(ids)).numpy()}]


def residual_code_embedding(checkpoint: Checkpoint, rng: np.random.Generator) -> tuple[list[Call], list[Call]]:
    tables = checkpoint.load("code_predictor").embeddings
    codes = rng.integers(0, tables[0].num_embeddings, (BATCH, 30, len(tables)))
    summed = sum(table(torch.from_numpy(codes[..., group])) for group, table in enumerate(tables))
    return [{"codes": codes}], [{"embeddings": summed.numpy()}]


def talker(checkpoint: Checkpoint, rng: np.random.Generator) -> tuple[list[Call], list[Call]]:
    embeds = rng.standard_normal((BATCH, 20, checkpoint.config.talker_config.hidden_size), dtype=np.float32)
    logits, hidden, _ = checkpoint.load("talker")(torch.from_numpy(embeds), torch.arange(20).expand(BATCH, -1))
    calls = talker_calls(embeds, (11, 1, 1, 7))
    ends = np.cumsum([call["inputs_embeds"].shape[1] for call in calls])
    return calls, [{"logits": logits[:, [end - 1]].numpy(), "hidden": hidden[:, [end - 1]].numpy()} for end in ends]


def talker_calls(embeds: NDArray, pieces: Sequence[int]) -> list[Call]:
    """Inputs [batch, positions, width] fed in pieces of the given lengths."""
    batch, ends = len(embeds), np.cumsum([0, *pieces])
    return [
        {
            "inputs_embeds": embeds[:, start:end],
            "position_ids": np.tile(np.arange(start, end), (batch, 1)),
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        for start, end in pairwise(ends)
    ]


def code_predictor(checkpoint: Checkpoint, rng: np.random.Generator) -> tuple[list[Call], list[Call]]:
    network, first_embedding = checkpoint.load("code_predictor"), checkpoint.load("codec_embedding")
    call = frame_inputs(network, checkpoint.config.talker_config.hidden_size, BATCH, rng)
    inputs = {port: torch.from_numpy(value) for port, value in call.items()}
    codes, summed = network.frame(**inputs, first_embedding=first_embedding(inputs["first_code"]))
    return [call], [{"codes": codes.numpy(), "embeddings": summed.numpy()}]


def speech_decoder(checkpoint: Checkpoint, rng: np.random.Generator) -> tuple[list[Call], list[Call]]:
    network = checkpoint.load("speech_decoder")
    codes = rng.integers(0, network.config.codebook_size, (BATCH, network.config.num_quantizers, 90))
    waveform, _ = network(torch.from_numpy(codes))
    cuts = [1, 4, 80]
    samples = [cut * network.config.samples_per_frame for cut in cuts]
    calls = [{"codes": piece} for piece in np.split(codes, cuts, axis=-1)]
    return calls, [{"waveform": piece} for piece in np.split(waveform.numpy(), samples, axis=-1)]


def speech_encoder(checkpoint: Checkpoint, rng: np.random.Generator) -> tuple[list[Call], list[Call]]:
    audio = swelling_noise(rng, 15 * 1920 + 777)
    return [{"audio": audio.numpy()}], [{"codes": checkpoint.load("speech_encoder")(audio).numpy()}]


def speaker_encoder(checkpoint: Checkpoint, rng: np.random.Generator) -> tuple[list[Call], list[Call]]:
    audio = swelling_noise(rng, 30_001)
    return [{"audio": audio.numpy()}], [{"embedding": checkpoint.load("speaker_encoder")(audio).numpy()}]


def swelling_noise(rng: np.random.Generator, samples: int) -> Tensor:
    """Audio [batch, samples] in which rows and moments differ."""
    swell = np.abs(np.sin(np.arange(samples) / np.array([[2000], [3500]])))
    return torch.from_numpy((0.3 * swell * rng.standard_normal((BATCH, samples))).astype(np.float32))


EXAMPLES: dict[str, Example] = {
    example.__name__: example
    for example in (
        text_embedding,
        codec_embedding,
        residual_code_embedding,
        talker,
        code_predictor,
        speech_decoder,
        speech_encoder,
        speaker_encoder,
    )
}
