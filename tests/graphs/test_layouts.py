"""Bundles in the layouts of other runtimes: the ports of their contracts, and graphs that behave as these expect."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from openvino._offline_transformations import stateful_to_stateless_transformation

from model_src.checkpoint import Checkpoint
from model_src.layers import causal_mask, rotary
from pipeline import build
from pipeline.stage import ROOT, PipelineError
from tests.conftest import configured
from tests.exported import Call, answers, assert_equal, request

CONTRACTS = ROOT / "tests" / "contracts"
LAYOUTS = ("openarc", "genai")
Rows = dict[str, tuple[str, str]]  # the input and the output cell of each graph


def table(layout: str) -> Rows:
    """The graphs in a contract's table."""
    rows = re.findall(r"^\| (\S+) \| (?:all|base) \| (.+) \| (.+) \|$", (CONTRACTS / f"{layout}.md").read_text(), re.M)
    return {graph: (inputs, outputs) for graph, inputs, outputs in rows}


def graphs() -> list[tuple[str, str]]:
    return [(layout, graph) for layout in LAYOUTS for graph in table(layout)]


@pytest.fixture(scope="module")
def checkpoint(artifact) -> Checkpoint:
    return Checkpoint(artifact("download", "tiny-base"))


@pytest.mark.parametrize(("layout", "graph"), graphs())
def test_the_ports_match_the_contract(bundle_of, checkpoint, layout, graph):
    model = ov.Core().read_model(bundle_of(layout) / f"{graph}.xml")
    for ports, cell in zip((model.inputs, model.outputs), table(layout)[graph], strict=True):
        expected = dict(re.findall(r"`(\w+)` (\w+ \[[^\]]*\])", cell))
        assert {name for port in ports for name in port.names} == expected.keys()
        assert all(port.names for port in ports), "every port needs a name"
        for port in ports:
            kind, shape = expected[port.any_name].split()
            assert port.element_type.get_type_name() == kind
            wanted = ov.PartialShape(shape.replace("H", str(checkpoint.config.talker_config.hidden_size)))
            assert wanted.compatible(port.partial_shape), f"{port.any_name} is {port.partial_shape}, not {shape}"
            assert wanted.rank == port.partial_shape.rank


def port_names(layout: str, graph: str) -> list[list[set[str]]]:
    """The names that each input and each output has by the contract, in its order."""
    return [[{name} for name in re.findall(r"`(\w+)`", cell)] for cell in table(layout)[graph]]


def names(graph: ov.Model | ov.CompiledModel) -> list[list[set[str]]]:
    """The names that each input and each output has."""
    return [[port.names for port in ports] for ports in (graph.inputs, graph.outputs)]


@pytest.mark.parametrize(("layout", "graph"), graphs())
def test_a_compiled_graph_has_the_contracts_names_alone_cold_and_from_a_cache(bundle_of, tmp_path, layout, graph):
    """Programs read a port's `get_any_name()`, and compilation may merge the names of inner tensors into a port's."""
    core = ov.Core()
    core.set_property({"CACHE_DIR": str(tmp_path)})
    for warm in (False, True):
        compiled = core.compile_model(bundle_of(layout) / f"{graph}.xml", "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        assert compiled.get_property("LOADED_FROM_CACHE") == warm
        assert names(compiled) == port_names(layout, graph)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_graph_brings_its_recommended_arithmetic_to_programs_that_give_none(bundle_of, layout):
    """All but INFERENCE_PRECISION_HINT, which OpenVINO does not read from a graph."""
    manifest = json.loads((bundle_of(layout) / "manifest.json").read_text())
    for name in ("talker_with_rotary", "code_step_with_rotary", "talker_with_mask", "code_step_with_mask"):
        if name not in manifest["components"]:
            continue
        compiled = ov.Core().compile_model(bundle_of(layout) / manifest["components"][name]["xml"], "CPU")
        recommended = manifest["placement"]["CPU"][name]
        group = compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")
        assert group == recommended["DYNAMIC_QUANTIZATION_GROUP_SIZE"] != 32, "the plugin's default is 32"
        precision = compiled.get_property("KV_CACHE_PRECISION").get_type_name()
        assert precision == recommended["KV_CACHE_PRECISION"] == "f32"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_bundle_contains_exactly_the_contracts_files(bundle_of, layout):
    bundle, text = bundle_of(layout), (CONTRACTS / f"{layout}.md").read_text()
    found = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    named = {f"{graph}.{ending}" for graph in table(layout) for ending in ("xml", "bin")}
    beside = set(re.findall(r"[\w./]+\.(?:json|txt|xml)", text.rsplit("Beside the graphs", 1)[1]))
    assert named | beside <= found
    assert {name for name in found - beside if name.endswith(".xml")} == {f"{graph}.xml" for graph in table(layout)}
    papers = {"manifest.json", "SHA256SUMS", "bom.cdx.json", "provenance.intoto.json"}
    assert set(json.loads((bundle / "manifest.json").read_text())["files"]) == found - papers


# ---- a talker and a code predictor that receive their positions ------------------------------------------------------


def openarc_inputs(positions: np.ndarray, theta: float) -> Call:
    cos, sin = rotary(torch.from_numpy(positions), 128, theta)
    return {"cos": cos.numpy(), "sin": sin.numpy()}


def genai_inputs(positions: np.ndarray, streams: bool) -> Call:
    mask = causal_mask(torch.from_numpy(positions), torch.arange(int(positions.max()) + 1)).numpy()
    mask = np.maximum(mask, np.finfo(np.float32).min)  # as optimum-intel masks
    return {"attention_mask": mask, "position_ids": np.stack([positions] * 3) if streams else positions}


def steps(embeds: np.ndarray, cuts: Iterable[int], more: Callable[[np.ndarray], Call]) -> list[Call]:
    """Embeddings [1, positions, width] fed in pieces, with the position inputs of a contract."""
    pieces = np.split(np.arange(embeds.shape[1])[None], list(cuts), axis=1)
    return [
        {"inputs_embeds": embeds[:, piece[0]], "beam_idx": np.zeros(1, np.int32), **more(piece)} for piece in pieces
    ]


TALKERS = {"openarc": ("talker", "hidden"), "genai": ("openvino_talker_model", "last_hidden_state")}
PREDICTORS = {"openarc": ("code_predictor", "generation_steps"), "genai": ("openvino_code_predictor_model", "step")}


@pytest.mark.parametrize("layout", LAYOUTS)
class TestStateful:
    def test_a_talker_in_pieces_equals_the_talker_in_one_call(self, bundle_of, checkpoint, layout):
        graph, hidden = TALKERS[layout]
        theta = checkpoint.config.talker_config.rope_theta

        def where(at: np.ndarray) -> Call:
            return openarc_inputs(at, theta) if layout == "openarc" else genai_inputs(at, streams=True)

        embeds = 0.1 * np.random.default_rng(1).standard_normal((1, 8, 64), dtype=np.float32)
        talker = request(bundle_of(layout) / f"{graph}.xml")
        (whole,) = answers(talker, steps(embeds, [], where))
        assert whole["logits"].shape == (1, 8, 3072)
        *_, last = answers(talker, steps(embeds, [7], where))
        assert_equal([last], [{port: value[:, -1:] for port, value in whole.items()}])
        assert hidden in last

    def test_a_reset_code_predictor_forgets_the_frame(self, bundle_of, checkpoint, layout):
        graph, step_port = PREDICTORS[layout]
        theta = checkpoint.config.talker_config.rope_theta

        def where(at: np.ndarray) -> Call:
            more = openarc_inputs(at, theta) if layout == "openarc" else genai_inputs(at, streams=False)
            return more | {step_port: np.array(max(int(at[0, 0]) - 1, 0))}

        embeds = np.random.default_rng(2).standard_normal((1, 16, 64), dtype=np.float32)
        predictor, calls = request(bundle_of(layout) / f"{graph}.xml"), steps(embeds, range(2, 16), where)
        first, again = answers(predictor, calls), answers(predictor, calls)
        assert len(first) == 15
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one["logits"], other["logits"])
        assert not np.array_equal(first[0]["logits"][0, -1], first[1]["logits"][0, -1])

    def test_the_state_can_be_removed_from_the_graph(self, bundle_of, layout):
        """Both runtimes do this for NPU; the pass refuses a graph without beam_idx."""
        caches = [f"{layer}.{kind}" for layer in range(2) for kind in ("key", "value")]
        for graph in (TALKERS[layout][0], PREDICTORS[layout][0]):
            model = ov.Core().read_model(bundle_of(layout) / f"{graph}.xml")
            stateful_to_stateless_transformation(model)
            inputs, outputs = port_names(layout, graph)
            inputs = [name for name in inputs if name != {"beam_idx"}]
            inputs += [{f"past_key_values.{cache}"} for cache in caches]
            outputs += [{f"present.{cache}"} for cache in caches]
            for model_or_compiled in (model, ov.Core().compile_model(model, "CPU")):
                found_inputs, found_outputs = names(model_or_compiled)
                assert sorted(map(sorted, found_inputs)) == sorted(map(sorted, inputs))
                assert sorted(map(sorted, found_outputs)) == sorted(map(sorted, outputs))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_step_of_tables_and_heads_equals_the_networks(bundle_of, checkpoint, layout):
    graph, ids, step = {
        "openarc": ("cp_codec_embedding", "token_ids", "step_idx"),
        "genai": ("openvino_code_predictor_embeddings", "input_ids", "step"),
    }[layout]
    table = request(bundle_of(layout) / f"{graph}.xml")
    codes = np.array([[5, 2047]])
    for number, embedding in enumerate(checkpoint.load("code_predictor").embeddings):
        expected = embedding(torch.from_numpy(codes)).detach().numpy()
        assert_equal(answers(table, [{ids: codes, step: np.array(number)}]), [{"embeddings": expected}], decibels=35)


@pytest.mark.parametrize(
    ("layout", "graph", "port"),
    [("openarc", "speech_tokenizer/speech_decoder", "codes"), ("genai", "openvino_codec_decoder", "audio_codes")],
)
def test_a_decoder_gives_1920_samples_per_frame(bundle_of, checkpoint, layout, graph, port):
    xml = bundle_of(layout) / f"{graph}.xml"
    decoder, network = request(xml), checkpoint.load("speech_decoder")
    codes = np.random.default_rng(3).integers(0, 2048, (1, 16, 101))
    for frames in (1, 25, 101):
        waveform, _ = network(torch.from_numpy(codes[..., :frames]))
        expected = {"waveform": waveform.detach().numpy()}
        assert expected["waveform"].shape[-1] == 1920 * frames
        assert_equal(answers(decoder, [{port: codes[..., :frames]}]), [expected], decibels=45)
    fixed = ov.Core().read_model(xml)
    fixed.reshape({port: [1, 16, 256]})  # as openvino.genai does for NPU
    assert fixed.output(0).shape[-1] == 256 * 1920


def test_genais_encoder_equals_the_native_one_by_group(bundle_of, artifact):
    audio = np.random.default_rng(4).uniform(-0.5, 0.5, (1, 24_000)).astype(np.float32)
    native = request(artifact("compress", "tiny-base") / "speech_encoder.xml")
    ours = answers(native, [{"audio": audio}])[0]["codes"]
    theirs = request(bundle_of("genai") / "openvino_codec_encoder.xml").infer({"input_values": audio[:, None]})[0]
    np.testing.assert_array_equal(theirs, ours.transpose(0, 2, 1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mels_give_the_same_x_vector_as_audio_in_the_native_layout(bundle_of, artifact, checkpoint: Checkpoint, layout):
    graph = {"openarc": "speaker_encoder", "genai": "openvino_speaker_encoder"}[layout]
    audio = np.random.default_rng(5).uniform(-0.5, 0.5, (1, 24_000)).astype(np.float32)
    mels = checkpoint.load("speaker_encoder").mel(torch.from_numpy(audio)).numpy()
    theirs = request(bundle_of(layout) / f"{graph}.xml").infer([mels])[0]
    ours = request(artifact("compress", "tiny-base") / "speaker_encoder.xml").infer([audio])[0]
    assert_equal([{"x": theirs}], [{"x": ours}], decibels=60)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_graph_that_differs_only_in_names_shares_the_weights_on_disk(bundle_of, artifact, layout: str):
    graph = {"openarc": "text_model", "genai": "openvino_text_embeddings"}[layout]
    ours: Path = artifact("compress", "tiny-base") / "text_embedding.bin"
    assert (bundle_of(layout) / f"{graph}.bin").samefile(ours)


def test_openarc_is_refused_a_checkpoint_whose_heads_it_cannot_rotate(artifact, tmp_path):
    voice = artifact("download", "mini-custom-voice")
    (tmp_path / voice.parent.name).mkdir()
    (tmp_path / voice.parent.name / "checkpoint").symlink_to(voice)
    with pytest.raises(
        PipelineError, match="the talker has heads of 64 values, and openarc speaks only from those of 128"
    ):
        build.run(configured(f"variant={voice.parent.name}", "layout=openarc", f"artifacts={tmp_path}"))
    assert not (tmp_path / voice.parent.name / "openarc").exists()
