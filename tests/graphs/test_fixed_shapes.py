"""Graphs with fixed shapes for NPU, verified on CPU: the caller keeps the state; outputs equal the stateful graphs'."""

import json
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from model_src.checkpoint import Checkpoint
from tests.exported import answers, assert_equal, frame_inputs, request, talker_calls

FORGOTTEN = 7.0  # in slots that a graph must ignore
LAYERS = 2


@pytest.fixture(scope="module")
def folder(bundle_of) -> Path:
    return bundle_of("npu")


def static_talker(graph: ov.InferRequest, embeds: np.ndarray, pieces: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    """The output at the last position of every piece; the caller keeps the cache and pads each piece."""
    _, positions, width = graph.get_tensor("inputs_embeds").shape
    names = [f"{layer}.{kind}" for layer in range(LAYERS) for kind in ("key", "value")]
    caches = {name: np.full(graph.get_tensor(f"past_key_values.{name}").shape, FORGOTTEN, "f4") for name in names}
    found, filled = [], 0
    for piece in pieces:
        padded = np.full((1, positions, width), FORGOTTEN, np.float32)
        padded[:, :piece] = embeds[:, filled : filled + piece]
        past = {f"past_key_values.{name}": cache for name, cache in caches.items()}
        result = graph.infer({"inputs_embeds": padded, "filled": np.array([filled]), **past})
        for name, cache in caches.items():
            cache[:, :, filled : filled + piece] = result[f"present.{name}"][:, :, :piece]
        filled += piece
        found.append({port: result[port][:, piece - 1 : piece].copy() for port in ("logits", "hidden")})
    return found


def test_no_graph_has_a_state_or_a_dynamic_shape(folder):
    for name in ("talker", "code_predictor", "speech_decoder"):
        model = ov.Core().read_model(folder / f"{name}.xml")
        assert not model.is_dynamic(), name
        assert not model.get_variables(), name


def test_the_talker_reads_its_cache_where_it_lies(folder):
    """Joined with the new keys, or repeated for the query heads, it would be copied in every layer."""
    model = ov.Core().read_model(folder / "talker.xml")
    caches = [port for port in model.inputs if port.any_name.startswith("past_key_values")]
    readers = {reader.get_node().get_type_name() for port in caches for reader in port.get_target_inputs()}
    assert readers - {"ShapeOf"} == {"MatMul"}


def test_the_manifest_states_that_none_has_run_on_an_npu(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["caveat"].endswith("none of them has run on an NPU yet.")
    assert manifest["layout"] == "npu"


@pytest.mark.parametrize("pieces", [(8, 8, 4, 1, 1), (1,) * 10, (3, 8, 2)], ids=str)
def test_the_talker_in_pieces_equals_the_stateful_one(folder, artifact, pieces):
    embeds = np.random.default_rng(1).standard_normal((1, sum(pieces), 64), dtype=np.float32)
    expected = answers(request(artifact("compress", "tiny-base") / "talker.xml"), talker_calls(embeds, pieces))
    assert_equal(static_talker(request(folder / "talker.xml"), embeds, pieces), expected)


@pytest.mark.parametrize("rules", [{"top_k": 1}, {}, {"top_k": 64, "top_p": 0.7, "temperature": 1.5}], ids=str)
def test_a_frame_has_the_codes_of_the_native_graph(folder, artifact, rules):
    native = request(artifact("compress", "tiny-base") / "code_predictor.xml")
    static = request(folder / "code_predictor.xml")
    network = Checkpoint(artifact("download", "tiny-base")).load("code_predictor")
    rng = np.random.default_rng(2)
    for _ in range(5):
        call = frame_inputs(network, 64, 1, rng, **rules)
        assert_equal(answers(static, [call]), answers(native, [call]))


def test_the_decoder_in_pieces_equals_the_stateful_one_past_its_window(folder, artifact):
    decoder = ov.Core().compile_model(folder / "speech_decoder.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    codes = np.random.default_rng(3).integers(0, 2048, (1, 16, 84))
    past = {port.any_name: np.zeros(port.shape, np.float32) for port in decoder.inputs if "past" in port.any_name}
    for name, window in past.items():
        if window.ndim == 4:
            past[name] = np.full_like(window, FORGOTTEN)  # keys and values from before the start
    waveform = []
    for number, piece in enumerate(np.split(codes, 21, axis=-1)):
        result = decoder({"codes": piece, "seen": np.array([4 * number]), **past})
        past = {name: result[name.replace("past", "present")] for name in past}
        waveform.append(result["waveform"])
    whole = answers(request(artifact("compress", "tiny-base") / "speech_decoder.xml"), [{"codes": codes}])
    assert_equal([{"waveform": np.concatenate(waveform, axis=-1)}], whole)
