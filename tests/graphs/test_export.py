"""The exported graphs compute what the networks compute, hold each weight once, as stored, and describe themselves."""

import filecmp
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch

from model_src.checkpoint import Checkpoint, CheckpointError
from pipeline.export import run
from pipeline.graphs.components import COMPONENTS
from pipeline.graphs.convert import export
from pipeline.stage import PipelineError, alone, configuration, read_metrics
from tests.conftest import configured, run_stage
from tests.exported import EXAMPLES, LARGE, NETWORKS, answers, assert_equal, constants, request

EVERYWHERE = {"text_embedding", "codec_embedding", "talker", "code_predictor", "speech_decoder"}
CARRIED = {
    "tiny-base": EVERYWHERE | {"residual_code_embedding", "speech_encoder", "speaker_encoder"},
    "tiny-custom-voice": EVERYWHERE,
    "tiny-voice-design": EVERYWHERE,
}
# The base variant has every component. Its code predictor is narrower than its talker, unlike a small custom voice's.
GRAPHS = [("tiny-base", name) for name in COMPONENTS] + [("tiny-custom-voice", "code_predictor")]


@pytest.mark.parametrize("variant", CARRIED)
def test_the_stage_writes_exact_graphs_of_a_kinds_components_and_nothing_else(artifact, variant):
    folder = artifact("export", variant)
    report = read_metrics(folder)
    assert report["components"].keys() == report["measured"].keys() - {"stage"} == CARRIED[variant]
    for measured in report["measured"].values():
        assert report["measured"]["stage"]["seconds"] >= measured["seconds"]
        assert measured["peak_bytes"] > 50e6, "a process with torch loaded"
    files = {f"{name}.{ending}" for name in CARRIED[variant] for ending in ("xml", "bin")}
    assert {path.name for path in folder.iterdir()} == files | {"report.json"}
    for name, ports in report["components"].items():
        assert ports, name
        for port, scores in ports.items():
            (measure, score), *more = scores.items()
            assert not more
            assert score >= {"snr_db": 90, "agreement": 1}[measure], f"{name}.{port}"


def test_every_component_has_an_example_here():
    assert EXAMPLES.keys() == COMPONENTS.keys()


@pytest.mark.parametrize(("variant", "name"), GRAPHS)
class TestEveryGraph:
    @torch.inference_mode()
    def test_it_computes_what_its_network_computes(self, artifact, variant, name):
        checkpoint = Checkpoint(artifact("download", variant))
        calls, expected = EXAMPLES[name](checkpoint, np.random.default_rng(1))
        assert_equal(answers(request(artifact("export", variant) / f"{name}.xml"), calls), expected)

    @torch.inference_mode()
    def test_a_batch_of_two_equals_two_runs_of_one(self, artifact, variant, name):
        calls, _ = EXAMPLES[name](Checkpoint(artifact("download", variant)), np.random.default_rng(2))
        graph = request(artifact("export", variant) / f"{name}.xml")
        together = answers(graph, calls)
        for row in (0, 1):
            alone = answers(graph, [row_of(call, row) for call in calls])
            assert_equal([row_of(result, row) for result in together], alone)


def test_a_layer_of_the_code_predictor_has_four_products(artifact):
    """Joined query, key and value; output; joined gate and up; down. Plus a projection before them and a head after."""
    config = Checkpoint(artifact("download", "tiny-base")).config.talker_config.code_predictor_config
    graph = ov.Core().read_model(artifact("export", "tiny-base") / "code_predictor.xml")
    weights = [node.input_value(1).get_node() for node in graph.get_ops() if node.get_type_name() == "MatMul"]
    products = sum(weight.get_type_name() == "Convert" for weight in weights)
    assert products == (config.num_code_groups - 1) * (4 * config.num_hidden_layers + 2)


PORTS = {
    "text_embedding": (["token_ids i64 [?,?]"], ["embeddings f32 [?,?,64]"]),
    "codec_embedding": (["token_ids i64 [?,?]"], ["embeddings f32 [?,?,64]"]),
    "residual_code_embedding": (["codes i64 [?,?,15]"], ["embeddings f32 [?,?,64]"]),
    "talker": (
        ["inputs_embeds f32 [?,?,64]", "position_ids i64 [?,?]", "beam_idx i32 [?]"],
        ["logits f32 [?,1,3072]", "hidden f32 [?,1,64]"],
    ),
    "code_predictor": (
        [
            "talker_hidden f32 [?,1,64]",
            "first_code i64 [?,1]",
            "noise f32 [?,15,2048]",
            "temperature f32 [1]",
            "top_k i64 [1]",
            "top_p f32 [1]",
        ],
        ["codes i64 [?,16]", "embeddings f32 [?,1,64]"],
    ),
    "speech_decoder": (["codes i64 [?,16,?]"], ["waveform f32 [?,1,?]"]),
    "speech_encoder": (["audio f32 [?,?]"], ["codes i64 [?,?,16]"]),
    "speaker_encoder": (["audio f32 [?,?]"], ["embedding f32 [?,64]"]),
}


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_ports_are_those_of_the_native_layout(artifact, name):
    model = ov.Core().read_model(artifact("export", "tiny-base") / f"{name}.xml")
    for ports, spelled in zip((model.inputs, model.outputs), PORTS[name], strict=True):
        for port, line in zip(ports, spelled, strict=True):
            port_name, kind, shape = line.split()
            assert port.names == {port_name}
            assert port.element_type.get_type_name() == kind
            # OpenVINO may derive more than the layout requires: that there is at least one frame.
            assert ov.PartialShape(shape).compatible(port.partial_shape), f"{line} is {port.partial_shape}"


def row_of(values: dict[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    """One row of each array that has a batch axis."""
    chosen = {port: value if len(value) == 1 else value[row : row + 1] for port, value in values.items()}
    return chosen | ({"beam_idx": np.zeros(1, np.int32)} if "beam_idx" in values else {})


@torch.inference_mode()
def test_the_folded_text_table_equals_table_and_projection_for_every_token(artifact):
    network = Checkpoint(artifact("download", "tiny-base")).load("text_embedding")
    graph = request(artifact("export", "tiny-base") / "text_embedding.xml")
    ids = np.arange(network.table.num_embeddings)[None]
    assert_equal(answers(graph, [{"token_ids": ids}]), [{"embeddings": network(torch.from_numpy(ids)).numpy()}])


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_graph_states_its_name_and_origin(artifact, name):
    source = json.loads((artifact("download", "tiny-base") / "report.json").read_text())
    said = ov.Core().read_model(artifact("export", "tiny-base") / f"{name}.xml").get_rt_info(["qwen3_tts"]).value
    assert said == {
        "component": name,
        "variant": "tiny-base",
        "source": source["source"],
        "revision": source["revision"],
        "layout": "native",
    }


def large_elements(checkpoint: Checkpoint, name: str) -> dict[torch.dtype, int]:
    """Number of elements in the large parameters of a component's networks, by dtype in the file."""
    counts: dict[torch.dtype, int] = {}
    for network in NETWORKS[name]:
        for tensor in checkpoint.load(network).state_dict().values():
            if tensor.numel() >= LARGE:
                counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return counts


@pytest.mark.parametrize("name", ["codec_embedding", "talker", "code_predictor", "speech_decoder", "speech_encoder"])
def test_each_weight_is_kept_once_in_the_checkpoints_dtype(artifact, name):
    stored = large_elements(Checkpoint(artifact("download", "tiny-base")), name)
    xml = artifact("export", "tiny-base") / f"{name}.xml"
    kinds = {torch.bfloat16: "bf16", torch.float32: "f32"}
    assert constants(xml) == {kinds[dtype]: count for dtype, count in stored.items()}
    large = sum(count * dtype.itemsize for dtype, count in stored.items())
    assert large < xml.with_suffix(".bin").stat().st_size < large + 400_000, "the rest is small"


@pytest.mark.parametrize("name", ["codec_embedding", "talker"])
def test_a_second_process_writes_the_same_bytes(artifact, tmp_path: Path, name):
    checkpoint, first = artifact("download", "tiny-base"), artifact("export", "tiny-base")
    labels = ov.Core().read_model(first / f"{name}.xml").get_rt_info(["qwen3_tts"]).value
    alone(export, name, checkpoint, tmp_path, labels, configuration().layout)
    for file in (f"{name}.xml", f"{name}.bin"):
        assert filecmp.cmp(tmp_path / file, first / file, shallow=False), file


@pytest.fixture
def cell(artifact, tmp_path: Path) -> Callable[..., Path]:
    """`cell("checkpoint")`: a separate variant with the named outputs of the shared one, and an earlier export."""

    def make(*stages: str) -> Path:
        shared, folder = artifact("export", "tiny-base").parent, tmp_path / "tiny-base"
        (folder / "ir").mkdir(parents=True)
        (folder / "ir" / "talker.xml").write_text("earlier")
        for stage in stages:
            (folder / stage).mkdir()
            for path in (shared / stage).iterdir():
                (folder / stage / path.name).symlink_to(path)
        return folder

    return make


def overrides(folder: Path, *more: str) -> list[str]:
    return ["variant=tiny-base", f"artifacts={folder.parent}", *more]


def assert_untouched(folder: Path) -> None:
    """Asserts that only the earlier export exists."""
    assert [path.name for path in folder.glob("*ir*")] == ["ir"]
    assert {path.name: path.read_text() for path in (folder / "ir").iterdir()} == {"talker.xml": "earlier"}


def test_a_missing_checkpoint_is_one_line_that_says_what_to_run(cell):
    folder = cell("model")
    done = run_stage("export", *overrides(folder))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: {folder}/checkpoint is missing; run the stage that makes it, or `dvc repro`"
    ]
    assert_untouched(folder)


def test_a_missing_record_is_refused_before_anything_is_exported(cell):
    folder = cell("checkpoint")
    with pytest.raises(PipelineError, match=r"/model is missing; run the stage that makes it"):
        run(configured(*overrides(folder)))
    assert_untouched(folder)


def test_a_record_without_a_component_fails_and_leaves_the_earlier_export(cell):
    folder = cell("checkpoint", "model")
    (folder / "model" / "text_embedding.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"text_embedding\.safetensors"):
        run(configured(*overrides(folder)))
    assert_untouched(folder)


def test_missing_weights_fail_and_leave_the_earlier_export(cell):
    folder = cell("checkpoint", "model")
    (folder / "checkpoint" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"text_embedding does not fit its weights: missing: talker\.model\.text"):
        run(configured(*overrides(folder)))
    assert_untouched(folder)


def test_a_graph_that_misses_its_bound_fails_and_leaves_the_earlier_export(cell):
    folder = cell("checkpoint", "model")
    with pytest.raises(PipelineError, match=r"^text_embedding\.embeddings: snr_db is 200, bound: at least 201$"):
        run(configured(*overrides(folder, "parity.export.snr_db=201")))
    assert_untouched(folder)
