"""The bundle stage: the same inputs give the same bytes, and any damage is reported before a bundle is written."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import jsonschema
import openvino as ov
import pytest
from tokenizers import Tokenizer

from pipeline import bundle
from pipeline.release import attestations
from pipeline.stage import Paths, PipelineError, paths_of, report, write_json
from qwen3_tts_ov.bundle import Bundle
from qwen3_tts_ov.errors import BundleError
from qwen3_tts_ov.manifest import COMPONENTS, bundle_id
from tests.conftest import configured, link_large

CELL = ("variant=tiny-custom-voice", "precision=int8")


@pytest.fixture
def inputs(artifact: Callable[..., Path], tmp_path: Path) -> Paths:
    """A separate root with everything that the bundle stage reads, for a test to damage."""
    artifact("compress")
    for stage in ("download", "build", "export", "rollout", "compress"):
        source = artifact(stage)
        copy = tmp_path / source.relative_to(source.parents[1 if stage != "compress" else 2])
        shutil.copytree(source, copy, copy_function=link_large)
    return paths_of(tmp_path, "tiny-custom-voice", "int8")


def run_bundle(where: Paths, *overrides: str) -> None:
    root = where.checkpoint.parents[1]
    bundle.run(configured(*CELL, f"artifacts={root}", *overrides))


def checksums(folder: Path) -> str:
    return (folder / "SHA256SUMS").read_text()


def test_the_runtime_loads_the_bundle_and_finds_the_checkpoints_values(artifact):
    loaded = Bundle.load(artifact("bundle"))
    config = json.loads((artifact("download") / "config.json").read_text())
    assert loaded.kind == config["tts_model_type"]
    assert loaded.speakers == sorted(config["talker_config"]["spk_id"])
    assert loaded.languages == sorted(config["talker_config"]["codec_language_id"])
    assert (loaded.sample_rate, loaded.samples_per_frame) == (24000, 1920)
    assert set(loaded.components) <= set(loaded.manifest["components"])


@pytest.mark.parametrize("variant", ["tiny-custom-voice", "tiny-base", "tiny-voice-design"])
def test_the_manifest_describes_the_graphs_as_openvino_reads_them(artifact, variant):
    folder = artifact("bundle", variant)
    manifest = Bundle.load(folder).manifest
    assert set(manifest["components"]) == set(COMPONENTS[manifest["kind"]])
    for name, entry in manifest["components"].items():
        model = ov.Core().read_model(folder / entry["xml"])
        assert list(entry["inputs"]) == sorted(port.any_name for port in model.inputs), name
        assert list(entry["outputs"]) == sorted(port.any_name for port in model.outputs), name
        assert len(entry["states"]) == len(model.get_sinks()), name
    talker = manifest["components"]["talker"]
    assert all(state["shape"][0] == -1 and state["dtype"] == "f32" for state in talker["states"].values())
    assert talker["states"]
    assert all(re.fullmatch(r"opset\d+", opset) for opset in talker["opsets"])
    assert talker["compression"] == {"mode": "int8_sym"}
    assert talker["precision"]["i8"] > talker["precision"]["f32"]
    assert manifest["components"]["talker"]["inputs"]["beam_idx"] == {"dtype": "i32", "shape": [-1]}


def test_the_default_voice_is_the_checkpoints_first_or_the_one_in_conf(artifact, inputs):
    plain = Bundle.load(artifact("bundle"))
    assert "default_voice" not in plain.manifest
    assert plain.default_voice == next(iter(plain.config["talker_config"]["spk_id"]))
    run_bundle(inputs, "+variant.voice=ryan")
    named = Bundle.load(inputs.bundle)
    assert named.default_voice == named.manifest["default_voice"] == "ryan"
    attestations.validate(named.manifest)
    with pytest.raises(PipelineError, match=r"variant\.voice: the checkpoint has no voice 'alloy'; it has: aiden, "):
        run_bundle(inputs, "+variant.voice=alloy")


def test_the_same_inputs_give_the_same_bytes(inputs):
    run_bundle(inputs)
    first = checksums(inputs.bundle)
    shutil.rmtree(inputs.bundle)
    run_bundle(inputs)
    assert checksums(inputs.bundle) == first


def test_activations_are_quantised_in_groups_no_larger_than_the_weights():
    """As recommended by a bundle of int4-max, whose code predictor has groups of 32."""
    properties = {"PERFORMANCE_HINT": "LATENCY", bundle.QUANTISED_TOGETHER: 256}
    for weights, expected in ((32, 32), (512, 256), (-1, 256), (None, 256)):  # -1: one scale per channel
        found = bundle.within_groups(properties, weights)
        assert found == properties | {bundle.QUANTISED_TOGETHER: expected}
    assert bundle.within_groups({"PERFORMANCE_HINT": "LATENCY"}, 32) == {"PERFORMANCE_HINT": "LATENCY"}


def test_provenance_and_measurements_do_not_change_the_id(inputs):
    run_bundle(inputs)
    manifest = json.loads((inputs.bundle / "manifest.json").read_text())
    elsewhere = manifest | {"provenance": {}, "evidence": {}, "missed": [], "smoke": {}, "precisions": {}}
    assert bundle_id(elsewhere) == manifest["bundle_id"]
    for key in manifest.keys() - {"bundle_id", "provenance", "evidence", "missed"}:
        assert bundle_id({**manifest, key: None}) != manifest["bundle_id"], key


def test_measurements_of_a_machine_are_not_in_the_manifest(inputs):
    found = json.loads((inputs.ir / "report.json").read_text())
    report(inputs.ir, found | {"measured": {"seconds": 1.0}})
    run_bundle(inputs)
    assert "measured" not in (inputs.bundle / "manifest.json").read_text()


def test_checksums_cover_every_file_and_pass_sha256sum(artifact):
    folder = artifact("bundle")
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    listed = {line.split("  ")[1] for line in checksums(folder).splitlines()}
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert present - listed == {"SHA256SUMS"}


def test_graphs_are_linked_where_the_file_system_supports_it(inputs):
    run_bundle(inputs)
    assert (inputs.bundle / "talker.bin").samefile(inputs.compressed / "talker.bin")


def test_graphs_are_copied_where_links_fail(inputs, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    run_bundle(inputs)
    assert not (inputs.bundle / "talker.bin").samefile(inputs.compressed / "talker.bin")
    Bundle.load(inputs.bundle)


def test_the_tokenizer_splits_the_chat_markup_into_the_ids_of_the_config(artifact):
    config = json.loads((artifact("download") / "config.json").read_text())
    ids = (
        Tokenizer.from_file(str(artifact("bundle") / "tokenizer.json"))
        .encode("<|im_start|>assistant\nHi<|im_end|>")
        .ids
    )
    assert ids[0] == config["im_start_token_id"]
    assert ids[1] == config["assistant_token_id"]
    assert ids[-1] == config["im_end_token_id"]


KINDS_OF_FILE = (
    "talker.xml",
    "talker.bin",
    "config.json",
    "generation_config.json",
    "speech_tokenizer/config.json",
    "tokenizer.json",
)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
@pytest.mark.parametrize("name", KINDS_OF_FILE)
def test_a_damaged_file_of_a_bundle_is_named(artifact, tmp_path, name, damage):
    folder = tmp_path / "bundle"
    shutil.copytree(artifact("bundle"), folder, copy_function=link_large)
    file = folder / name
    data = bytearray(file.read_bytes())
    file.unlink()
    if damage == "flipped":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "truncated":
        file.write_bytes(data[:-1])
    with pytest.raises(BundleError, match=name):
        Bundle.load(folder)


def test_a_file_that_the_manifest_does_not_list_is_named(artifact, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(artifact("bundle"), folder, copy_function=link_large)
    assert Bundle.load(folder).foreign() == []
    (folder / "extra.bin").write_bytes(b"")
    assert Bundle.load(folder).foreign() == ["extra.bin"]


def test_an_edited_manifest_is_refused(artifact, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(artifact("bundle"), folder, copy_function=link_large)
    manifest = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", manifest | {"speakers": ["somebody"]})
    with pytest.raises(BundleError, match="manifest"):
        Bundle.load(folder)


def remove(path: Path) -> None:
    path.unlink()


def halve(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()  # which may be a link to what other tests read
    path.write_bytes(data[: len(data) // 2])


def renumber(path: Path) -> None:
    config = json.loads(path.read_text())
    write_json(path, config | {"im_end_token_id": config["im_end_token_id"] + 1})


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("checkpoint/report.json", remove, "checkpoint is missing"),
        ("checkpoint/report.json", halve, r"checkpoint/report.json is damaged"),
        ("checkpoint/config.json", halve, r"config.json is damaged"),
        ("checkpoint/config.json", renumber, "im_end_token_id"),
        ("checkpoint/generation_config.json", remove, "generation_config.json"),
        ("checkpoint/vocab.json", halve, "tokenizer"),
        ("checkpoint/merges.txt", halve, "tokenizer"),
        ("model/report.json", remove, "model is missing"),
        ("ir/report.json", remove, "ir is missing"),
        ("int8/ir/report.json", remove, "int8/ir is missing"),
        ("int8/ir/talker.xml", halve, r"talker.xml: OpenVINO cannot read it"),
        ("int8/ir/talker.bin", halve, r"talker.xml: OpenVINO cannot read it"),
        ("int8/ir/talker.bin", remove, r"talker.xml: OpenVINO cannot read it"),
        ("int8/ir/talker.xml", remove, "talker"),
    ],
)
def test_a_damaged_input_is_named_and_the_earlier_bundle_is_kept(artifact, inputs, file, damage, message):
    shutil.copytree(artifact("bundle"), inputs.bundle, copy_function=link_large)
    before = checksums(inputs.bundle)
    damage(inputs.checkpoint.parent / file)
    with pytest.raises((PipelineError, BundleError, OSError), match=message):
        run_bundle(inputs)
    assert checksums(inputs.bundle) == before
    assert set(os.listdir(inputs.bundle.parent)) == {"ir", "bundle"}


def test_the_published_schema_refuses_an_invalid_manifest(artifact):
    manifest = json.loads((artifact("bundle") / "manifest.json").read_text())
    attestations.validate(manifest)
    for change in (
        {"format": 2},
        {"kind": "singing"},
        {"bundle_id": "abc"},
        {"files": {"../outside.bin": {"size": 1, "sha256": "0" * 64}}},
        {"files": {"/etc/passwd": {"size": 1, "sha256": "0" * 64}}},
        {"unknown": 1},
        {"source": manifest["source"] | {"revision": "main"}},
        {"smoke": {"NPU": {"status": "not_run"}}},  # without the reason
        {"smoke": {"NPU": {"status": "probably fine"}}},
    ):
        with pytest.raises(PipelineError, match=r"manifest\.json: \$"):
            attestations.validate(manifest | change)


def test_the_schema_itself_is_valid():
    jsonschema.Draft202012Validator.check_schema(json.loads(attestations.SCHEMA.read_text()))
