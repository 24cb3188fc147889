"""Attestations describe a bundle in standard formats, and are the same for the same bundle."""

import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.model.bom import Bom

from pipeline.release import attestations
from pipeline.stage import PipelineError
from qwen3_tts_ov import BundleError
from qwen3_tts_ov.bundle import Bundle, verified


@pytest.fixture
def manifest(artifact) -> dict[str, Any]:
    return json.loads((artifact("bundle") / "manifest.json").read_text())


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def test_the_manifest_records_the_origin_of_everything(artifact, manifest):
    checkpoint = artifact("download")
    config = read(checkpoint, "config.json")
    assert manifest["source"]["licence"] == "Apache-2.0"
    for name, entry in manifest["source"]["files"].items():
        assert hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() == entry["sha256"]
    spoken = config["talker_config"]["spk_is_dialect"]
    assert manifest["dialects"] == {name: dialect for name, dialect in spoken.items() if dialect}
    assert manifest["dialects"]["eric"] == "sichuan_dialect"
    made = manifest["provenance"]
    assert {"python", "torch", "openvino", "nncf", "transformers", "openvino-tokenizers"} <= set(made["versions"])
    assert len(made["git"]["commit"]) == 40
    assert papers_config_hash(made["config"]) == made["config_sha256"]
    for stage in ("export", "compress"):
        assert set(manifest["evidence"][stage]["components"]) == set(manifest["components"])


def papers_config_hash(config: Any) -> str:
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_bill_of_materials_lists_every_file_and_the_library_reads_it(artifact, manifest):
    bom = read(artifact("bundle"), "bom.cdx.json")
    attestations.validate_materials(bom)
    listed = {part["name"]: part for part in bom["components"]}
    for name, entry in manifest["files"].items():
        assert listed[name]["hashes"] == [{"alg": "SHA-256", "content": entry["sha256"]}]
    checkpoint = listed[manifest["source"]["repo"]]
    assert {part["name"] for part in checkpoint["components"]} == set(manifest["source"]["files"])
    assert f"pkg:pypi/openvino@{manifest['provenance']['versions']['openvino']}" in {
        part.get("purl") for part in bom["components"]
    }
    snr = manifest["evidence"]["compress"]["components"]["talker"]["closeness"]["logits"]["snr_db"]
    metrics = bom["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {"type": "snr_db", "slice": "talker.logits", "value": str(snr)} in metrics
    assert len(Bom.from_json(bom).components) == len(bom["components"])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda bom: bom.update(bomFormat="SPDX"),
        lambda bom: bom["components"][0].pop("name"),
        lambda bom: bom["components"][-1].update(type="potato"),
        lambda bom: bom["metadata"]["component"]["modelCard"].update(mood="good"),
    ],
)
def test_an_invalid_bill_of_materials_is_refused(manifest, spoil):
    bom = attestations.bill_of_materials(manifest)
    spoil(bom)
    with pytest.raises(PipelineError, match=r"bom\.cdx\.json: \$"):
        attestations.validate_materials(bom)


def test_the_provenance_is_an_in_toto_statement_about_every_file(artifact, manifest):
    statement_pb2 = pytest.importorskip("in_toto_attestation.v1.statement_pb2", reason="needs the extra `release`")
    from google.protobuf.json_format import ParseDict
    from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
    from in_toto_attestation.v1.statement import Statement

    statement = read(artifact("bundle"), "provenance.intoto.json")
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    expected = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    content = (artifact("bundle") / "manifest.json").read_bytes()
    assert subjects == expected | {"manifest.json": hashlib.sha256(content).hexdigest()}
    Statement.copy_from_pb(ParseDict(statement, statement_pb2.Statement())).validate()
    ParseDict(statement["predicate"], Provenance())  # accepts only keys of SLSA
    definition = statement["predicate"]["buildDefinition"]
    commit = {"name": "pipeline", "digest": {"gitCommit": manifest["provenance"]["git"]["commit"]}}
    assert commit in definition["resolvedDependencies"]
    assert definition["externalParameters"] == manifest["provenance"]["config"]


def test_attestations_do_not_change_when_they_are_rewritten(artifact, tmp_path, manifest):
    shutil.copytree(artifact("bundle"), tmp_path / "again")
    attestations.write_papers(tmp_path / "again", copy.deepcopy(manifest))
    assert (tmp_path / "again/SHA256SUMS").read_bytes() == (artifact("bundle") / "SHA256SUMS").read_bytes()


def change_paper(folder: Path) -> None:
    (folder / "bom.cdx.json").write_text("{}")


def lose_paper(folder: Path) -> None:
    (folder / "bom.cdx.json").unlink()


def garble_sums(folder: Path) -> None:
    (folder / "SHA256SUMS").write_bytes(b"\xff\xfe  talker.bin\n")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (change_paper, "bom.cdx.json does not match SHA256SUMS"),
        (lose_paper, "bom.cdx.json is missing, but listed in SHA256SUMS"),
        (garble_sums, "talker.bin does not match SHA256SUMS"),
    ],
)
def test_a_changed_attestation_is_named(artifact, tmp_path, harm, said):
    folder = tmp_path / "bundle"
    shutil.copytree(artifact("bundle"), folder)
    verified(folder)
    harm(folder)
    Bundle.load(folder)  # still speaks: nothing that it reads has changed
    with pytest.raises(BundleError, match=said):
        verified(folder)
