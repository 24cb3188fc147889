"""The talker's KV cache: inside the graph, fused with attention, and independent of how the prompt is split."""

from collections import Counter
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from tests.exported import answers, assert_equal, compiled, layer_type, request, talker_calls

VARIANT = "tiny-base"
LAYERS, WIDTH = 2, 64  # of the tiny variants in conf/variant


@pytest.fixture
def talker(artifact) -> ov.InferRequest:
    return request(artifact("export", VARIANT) / "talker.xml")


@pytest.fixture
def embeds() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((2, 40, WIDTH), dtype=np.float32)


@pytest.mark.parametrize("pieces", [(39, 1), (1, 7, 16, 16), (1,) * 40], ids=["two", "four", "one by one"])
def test_a_prefill_in_pieces_equals_a_prefill_in_one_call(talker, embeds, pieces):
    whole = answers(talker, talker_calls(embeds, (40,)))
    assert_equal(answers(talker, talker_calls(embeds, pieces))[-1:], whole)


def test_a_reset_request_remembers_nothing(talker, embeds):
    *calls, one_more = talker_calls(embeds, (30, 9, 1))
    first = answers(talker, calls)
    talker.infer(one_more)
    for again, before in zip(answers(talker, calls), first, strict=True):
        for port, value in before.items():
            np.testing.assert_array_equal(again[port], value)


def test_earlier_calls_affect_the_output_until_the_reset(talker, embeds):
    """Without this, the two tests above would pass on a graph without a cache."""
    _, last = answers(talker, talker_calls(embeds, (39, 1)))
    (alone,) = answers(talker, talker_calls(embeds[:, 39:], (1,)))
    assert np.abs(alone["logits"] - last["logits"]).max() > 0.1 * np.abs(last["logits"]).max()


def test_beam_idx_selects_the_past_that_each_row_continues(talker, embeds):
    prefill, step = talker_calls(embeds, (39, 1))
    (_, straight) = answers(talker, [prefill, step])
    swapped_step = {port: value[::-1] for port, value in step.items()}  # beam_idx becomes [1, 0]
    (_, swapped) = answers(talker, [prefill, swapped_step])
    assert_equal([{port: value[::-1] for port, value in swapped.items()}], [straight])


def sources(node: ov.Node) -> list[str]:
    """The types of a layer's inputs."""
    return [layer_type(port.get_source_output().get_node()) for port in node.inputs()]


def readers(node: ov.Node) -> list[str]:
    """The types of a layer's consumers."""
    return [layer_type(port.get_node()) for output in node.outputs() for port in output.get_target_inputs()]


def export_of(artifact, precision: str | None) -> Path:
    return artifact("export", VARIANT) if precision is None else artifact("compress", VARIANT, precision)


@pytest.mark.parametrize("precision", [None, "int8", "int4"], ids=["as stored", "int8", "int4"])
def test_each_layer_runs_as_fused_attention_with_its_cache_inside(artifact, precision):
    nodes = compiled(export_of(artifact, precision) / "talker.xml").get_runtime_model().get_ops()
    count = Counter(layer_type(node) for node in nodes)
    assert count["ScaledDotProductAttention"] == LAYERS
    assert count["RoPE"] == 2 * LAYERS, "queries and keys"
    assert count["RMS"] == 4 * LAYERS + 1, "per layer two, and one each for queries and keys; the final one"
    assert count["MatMul"] == count["Softmax"] == 0, "attention is still fused"
    assert count["FullyConnected"] == 4 * LAYERS + 1, "qkv, o, gate and up, down, and the head"

    assert count["MemoryInput"] == count["MemoryOutput"] == 2 * LAYERS
    for node in nodes:
        if layer_type(node) == "MemoryInput":
            assert readers(node) == ["ScaledDotProductAttention"], "no other layer gathers or joins the past"
        if layer_type(node) == "MemoryOutput":
            assert sources(node) == ["ScaledDotProductAttention"]
    # Only shapes and rotary angles are joined, which all layers share.
    assert count["Concatenation"] <= 2
