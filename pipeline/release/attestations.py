"""A bundle's papers: manifest.json, a CycloneDX bill of materials, SLSA provenance, SHA256SUMS.

All are derived from the manifest and hold no time stamp, so the same bundle has the same papers.
"""

import json
import uuid
from pathlib import Path
from typing import Any

import jsonschema
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from pipeline.stage import ROOT, PipelineError, fingerprint, list_files, read_json, write_json
from qwen3_tts_ov.bundle import CHECKSUMS
from qwen3_tts_ov.manifest import MANIFEST

SCHEMA = ROOT / "qwen3_tts_ov" / "manifest.schema.json"
MATERIALS, PROVENANCE = "bom.cdx.json", "provenance.intoto.json"
BUILD_TYPE = "urn:qwen3-tts-ov:pipeline:1"
# The pipeline, whichever machine it ran on; a signature names the signer.
BUILDER = "urn:qwen3-tts-ov:dvc"
PARAMETERS = {  # of the model, in CycloneDX's words
    "task": "text-to-speech",
    "architectureFamily": "transformer",
    "modelArchitecture": "Qwen3-TTS",
    "inputs": [{"format": "text"}],
    "outputs": [{"format": "audio"}],
}
Json = dict[str, Any]


def write_papers(folder: Path, manifest: Json) -> None:
    """Writes the papers of the files in a folder. Raises PipelineError for a manifest that the schema refuses."""
    validate(manifest)
    manifest = json.loads(json.dumps(manifest, sort_keys=True))  # in the order in which it is read back
    write_json(folder / MANIFEST, manifest)
    materials = bill_of_materials(manifest)
    validate_materials(materials)
    write_json(folder / MATERIALS, materials)
    write_json(folder / PROVENANCE, provenance(manifest, fingerprint(folder / MANIFEST)["sha256"]))
    write_checksums(folder)


def validate(manifest: Json) -> None:
    """Raises PipelineError naming the first key that the published schema refuses."""
    try:
        jsonschema.validate(manifest, read_json(SCHEMA))
    except jsonschema.ValidationError as error:
        raise PipelineError(f"manifest.json: {error.json_path}: {error.message}") from error


def bill_of_materials(manifest: Json) -> Json:
    """The bundle as a machine-learning model of CycloneDX 1.6: its files, its checkpoint and what made it."""
    source, versions = manifest["source"], manifest["provenance"]["versions"]
    model, checkpoint = f"bundle:{manifest['bundle_id']}", f"checkpoint:{source['revision']}"
    tools = [  # excluded: no part of the bundle
        {"type": "library", "scope": "excluded", "bom-ref": url, "purl": url, "name": name, "version": versions[name]}
        for name, url in package_urls(versions).items()
    ]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, model)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "machine-learning-model",
                "bom-ref": model,
                "name": f"{manifest['variant']}-{manifest['precision']}-{manifest['layout']}",
                "version": manifest["bundle_id"],
                **licensed(source["licence"]),
                "modelCard": {
                    "modelParameters": PARAMETERS,
                    "quantitativeAnalysis": {"performanceMetrics": metrics(manifest)},
                },
            },
        },
        "components": [
            {
                "type": "machine-learning-model",
                "bom-ref": checkpoint,
                "name": source["repo"],
                "version": source["revision"],
                **licensed(source["licence"]),
                "components": [file_component(checkpoint, *item) for item in source["files"].items()],
            },
            *(file_component(model, *item) for item in manifest["files"].items()),
            *tools,
        ],
        "dependencies": [{"ref": model, "dependsOn": [checkpoint]}],
    }


def licensed(licence: str | None) -> Json:
    """The licence as CycloneDX has it: an SPDX expression; nothing where none is known."""
    return {} if licence is None else {"licenses": [{"expression": licence}]}


def file_component(owner: str, name: str, entry: Json) -> Json:
    """A file with its sha256 and size in bytes."""
    return {
        "type": "file",
        "bom-ref": f"{owner}/{name}",
        "name": name,
        "hashes": [{"alg": "SHA-256", "content": entry["sha256"]}],
        "properties": [{"name": "qwen3-tts-ov:size", "value": str(entry["size"])}],
    }


def metrics(manifest: Json) -> list[Json]:
    """What `compress` measured of every component: of its outputs against PyTorch, and on held-out texts."""
    found = [item for stages in stage_reports(manifest) for item in stages["compress"]["components"].items()]
    slices = {f"{name}.{port}": scores for name, entry in found for port, scores in entry["closeness"].items()}
    slices |= {f"{name}, held-out texts": entry["quality"] for name, entry in found}
    return [
        {"type": measure, "slice": part, "value": str(value)}
        for part, scores in slices.items()
        for measure, value in scores.items()
    ]


def stage_reports(manifest: Json) -> list[Json]:
    """The reports of the native stages and, in another layout, those of the graphs that it adds."""
    found, layout = manifest["evidence"], manifest["layout"]
    return [found, found[layout]] if layout in found else [found]


def package_urls(versions: dict[str, str]) -> dict[str, str]:
    """The purl of each Python package."""
    return {name: f"pkg:pypi/{name}@{version}" for name, version in versions.items() if name != "python"}


def validate_materials(materials: Json) -> None:
    """Raises PipelineError saying what CycloneDX's own schema refuses."""
    if fault := JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(materials)):
        raise PipelineError(f"{MATERIALS}: {fault.data.json_path}: {fault.data.message}")


def provenance(manifest: Json, manifest_sha256: str) -> Json:
    """An in-toto statement with SLSA's provenance 1: from which code, configuration and checkpoint the files came."""
    source, made = manifest["source"], manifest["provenance"]
    origin = f"{source['repo']}@{source['revision']}"
    commit = made["git"]["commit"]
    subjects = {name: entry["sha256"] for name, entry in manifest["files"].items()} | {MANIFEST: manifest_sha256}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(subjects.items())],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": made["config"],
                "internalParameters": {"config_sha256": made["config_sha256"], "dirty": made["git"]["dirty"]},
                "resolvedDependencies": [
                    {"name": "pipeline"} | ({"digest": {"gitCommit": commit}} if commit else {}),
                    *(
                        {"name": f"{origin}/{name}", "digest": {"sha256": entry["sha256"]}}
                        for name, entry in source["files"].items()
                    ),
                    *({"uri": url} for url in package_urls(made["versions"]).values()),
                ],
            },
            "runDetails": {"builder": {"id": BUILDER, "version": {"python": made["versions"]["python"]}}},
        },
    }


def write_checksums(folder: Path) -> None:
    """Writes SHA256SUMS over every other file, the manifest included, for `sha256sum --check`."""
    names = (name for name in list_files(folder) if name != CHECKSUMS)
    lines = [f"{fingerprint(folder / name)['sha256']}  {name}\n" for name in names]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def read_checksums(text: str) -> list[str]:
    """The names in a SHA256SUMS."""
    return [line.split("  ", 1)[1] for line in text.splitlines() if "  " in line]
