"""Compression changes only how weights are stored, by a policy whose loss is checked against bounds."""

import filecmp
import json
import re
from pathlib import Path

import openvino as ov
import pytest

from model_src.checkpoint import Checkpoint
from pipeline.compress import run
from pipeline.graphs.components import COMPONENTS
from pipeline.graphs.compression import compress
from pipeline.stage import PipelineError, alone, configuration, read_metrics
from tests.conftest import configured, run_stage
from tests.exported import LARGE, NETWORKS, constants

VARIANT = "tiny-base"
EIGHT_BIT = {"text_embedding", "codec_embedding", "residual_code_embedding", "talker", "code_predictor"}  # of int8


def elements(checkpoint: Checkpoint, name: str) -> int:
    """Number of elements in the large weights of a component, each counted once."""
    if name == "text_embedding":  # its projection is folded in
        return checkpoint.config.talker_config.text_vocab_size * checkpoint.config.talker_config.hidden_size
    if name == "residual_code_embedding":
        return sum(table.weight.numel() for table in checkpoint.load("code_predictor").embeddings)
    tensors = [tensor for network in NETWORKS[name] for tensor in checkpoint.load(network).state_dict().values()]
    return sum(tensor.numel() for tensor in tensors if tensor.numel() >= LARGE)


@pytest.mark.parametrize("name", sorted(COMPONENTS))
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_each_weight_is_stored_once_by_the_policy(artifact, precision, name):
    xml = artifact("compress", VARIANT, precision) / f"{name}.xml"
    stored, expected = constants(xml), elements(Checkpoint(artifact("download", VARIANT)), name)
    kind, size = ("i8", 1) if precision == "int8" and name in EIGHT_BIT else ("f16", 2)
    computed = 65_664 if name == "speaker_encoder" else 0  # its Fourier basis and mel filters
    assert stored[kind] == expected + computed
    scales = stored.keys() - {kind}
    assert scales <= {"f16"}, "no large weight is left in 32 bits, and none in bfloat16"
    assert expected * size < xml.with_suffix(".bin").stat().st_size < 1.05 * expected * size + 400_000


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_no_constant_of_any_size_stays_bfloat16(artifact, precision):
    assert 'element_type="bf16"' in (artifact("export", VARIANT) / "talker.xml").read_text()
    for xml in artifact("compress", VARIANT, precision).glob("*.xml"):
        assert 'element_type="bf16"' not in xml.read_text(), xml.name


def interface(xml: Path) -> dict[str, object]:
    """A graph as a caller sees it."""
    model = ov.Core().read_model(xml)
    ports = {
        side: [(port.names, port.element_type.get_type_name(), str(port.partial_shape)) for port in found]
        for side, found in (("inputs", model.inputs), ("outputs", model.outputs))
    }
    infos = [variable.get_info() for variable in model.get_variables()]
    states = {(info.variable_id, info.data_type.get_type_name(), str(info.data_shape)) for info in infos}
    return ports | {"states": states, "says": model.get_rt_info(["qwen3_tts"]).value}


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("name", sorted(COMPONENTS))
def test_ports_states_and_labels_are_those_of_the_export(artifact, precision, name):
    exported = interface(artifact("export", VARIANT) / f"{name}.xml")
    assert interface(artifact("compress", VARIANT, precision) / f"{name}.xml") == exported
    assert len(exported["states"]) == {"talker": 4, "speech_decoder": 25}.get(name, 0)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_report_lists_how_weights_are_stored_and_how_close_the_graph_is(artifact, precision):
    folder = artifact("compress", VARIANT, precision)
    report = read_metrics(folder)
    assert report["components"].keys() == report["measured"].keys() == COMPONENTS.keys()
    for name, said in report["components"].items():
        assert said["bytes"] == (folder / f"{name}.bin").stat().st_size
        eight_bit = precision == "int8" and name in EIGHT_BIT
        assert said["weights"] == {"mode": "int8_sym" if eight_bit else "f16"}
        assert said["closeness"], "measured, whether or not there is a bound"
        assert said["parity"] == ({} if eight_bit or name == "code_predictor" else {"snr_db": 45})
        for scores in said["closeness"].values():
            bounds = said["parity"] | said["bounds"]
            assert all(score >= bounds.get(measure, -100) for measure, score in scores.items()), name


@pytest.mark.parametrize(("name", "mode"), [("talker", "int8_sym"), ("speaker_encoder", "f16")])
def test_a_second_process_writes_the_same_bytes(artifact, tmp_path: Path, name, mode):
    alone(compress, artifact("export", VARIANT) / f"{name}.xml", tmp_path / f"{name}.xml", {"mode": mode}, tmp_path)
    for file in (f"{name}.xml", f"{name}.bin"):
        assert filecmp.cmp(tmp_path / file, artifact("compress", VARIANT) / file, shallow=False), file


@pytest.fixture
def cell(artifact, tmp_path: Path) -> Path:
    """A separate variant, with the shared export and recording, and an earlier result of compression."""
    shared, folder = artifact("export", VARIANT).parent, tmp_path / VARIANT
    for stage in ("checkpoint", "model", "ir", "rollout"):
        (folder / stage).mkdir(parents=True)
        for path in (shared / stage).iterdir():
            (folder / stage / path.name).symlink_to(path)
    (folder / "int8" / "ir").mkdir(parents=True)
    (folder / "int8" / "ir" / "talker.xml").write_text("earlier")
    return folder


def of_graph(name: str) -> list[str]:
    """Overrides that leave one graph to compress."""
    graphs = configuration([f"variant={VARIANT}"]).layout.graphs
    return [f"~layout.graphs.{other}" for other in graphs if other != name]


def overrides(folder: Path, *more: str) -> list[str]:
    return [f"variant={VARIANT}", "precision=int8", f"artifacts={folder.parent}", *more]


def assert_untouched(folder: Path) -> None:
    """Asserts that only the earlier result exists."""
    assert [path.name for path in (folder / "int8").iterdir()] == ["ir"]
    assert {path.name: path.read_text() for path in (folder / "int8" / "ir").iterdir()} == {"talker.xml": "earlier"}


def test_a_missed_parity_bound_is_one_line_and_leaves_the_earlier_output(cell):
    done = run_stage("compress", *overrides(cell, "parity.f16.default.snr_db=120", *of_graph("speech_decoder")))
    assert done.returncode == 1
    error = [line for line in done.stderr.splitlines() if not line.startswith("compress to int8")]
    assert len(error) == 1, done.stderr
    assert re.fullmatch(r"error: speech_decoder\.waveform: snr_db is \d+(\.\d+)?, bound: at least 120", error[0]), (
        error[0]
    )
    assert_untouched(cell)


def test_a_missed_bound_on_quality_is_one_line_and_is_reported(cell, capsys):
    four_bits = "{mode: int4_sym, group_size: 32, all_layers: true}"
    policy = f"++precision.weights.text_embedding={four_bits}"
    run(configured(*overrides(cell, policy, *of_graph("text_embedding"))))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("missed: ")]
    assert re.fullmatch(r"missed: text_embedding: snr_db is 2\d\.\d+, bound: at least 35", line), line
    (miss,) = json.loads((cell / "int8" / "ir" / "report.json").read_text())["missed"]
    assert miss == {"subject": "text_embedding", "measure": "snr_db", "bound": 35, "value": pytest.approx(25, abs=5)}


def test_a_bound_without_a_figure_is_missed(cell, capsys):
    bound = "++precision.bounds.text_embedding.top1=0.9"
    run(configured(*overrides(cell, bound, *of_graph("text_embedding"))))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("missed: ")]
    assert lines == ["missed: text_embedding: top1 is not measured (no figure), bound: at least 0.9"]


@pytest.mark.parametrize("section", ["weights", "bounds"])
def test_an_unknown_component_in_a_policy_is_refused_with_the_known_ones(cell, section):
    with pytest.raises(PipelineError) as refused:
        run(configured(*overrides(cell, f"+precision.{section}.vocoder={{}}")))
    assert str(refused.value) == (
        f"conf/precision/int8.yaml: {section} names an unknown component 'vocoder'; known: {', '.join(COMPONENTS)}"
    )
    assert_untouched(cell)


@pytest.mark.parametrize(
    "policy",
    [
        "mode: int9",
        "mode: f16, ratio: 1",
        "mode: int8_sym, ratio: 0.5",
        "mode: int4_sym, advanced_parameters: {group_size_fallback_mode: guess}",
        "mode: int4_sym, advanced_parameters: {unheard_of: 1}",
        "mode: int4_sym, scale_estimation: true",
    ],
)
def test_a_policy_that_nncf_refuses_is_one_line(cell, policy):
    with pytest.raises(PipelineError, match=r"^text_embedding: NNCF cannot store weights by .*the modes are f16, "):
        run(configured(*overrides(cell, f"++precision.weights.text_embedding={{{policy}}}")))
    assert_untouched(cell)


@pytest.mark.parametrize("stage", ["ir", "model"])
def test_a_missing_export_or_record_is_refused(cell, stage):
    (cell / stage / "report.json").unlink()
    with pytest.raises(PipelineError, match=rf"/{stage} is missing; run the stage that makes it"):
        run(configured(*overrides(cell)))
    assert_untouched(cell)
