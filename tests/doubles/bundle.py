"""Bundles that pass a runtime's checks, with files that cannot be compiled."""

import hashlib
import json
from pathlib import Path
from typing import Any

from qwen3_tts_ov.manifest import COMPONENTS, CONFIGURATION, bundle_id

LARGE = b"weights " * 100_000


def sign(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest | {"bundle_id": bundle_id(manifest)}


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest))


def make_bundle(folder: Path, kind: str = "custom_voice") -> Path:
    """A bundle of a few bytes, with a correct list of files."""
    contents = dict.fromkeys(CONFIGURATION, b"{}")
    contents |= {f"{name}.xml": f"<net name='{name}'/>".encode() for name in COMPONENTS[kind]}
    contents |= {f"{name}.bin": b"weights" for name in COMPONENTS[kind]} | {"talker.bin": LARGE}
    contents["speech_tokenizer/config.json"] = b"{}"
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    files = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    manifest = {
        "format": 1,
        "variant": "tiny",
        "kind": kind,
        "precision": "int8",
        "layout": "native",
        "source": {"repo": "synthetic", "revision": None, "files": {}},
        "minimum_openvino": "2025.1",
        "sample_rate": 24000,
        "samples_per_frame": 1920,
        "components": {name: {"xml": f"{name}.xml", "bin": f"{name}.bin"} for name in COMPONENTS[kind]},
        "files": files,
        "languages": ["english"],
        "speakers": ["ryan"],
        "generation": {},
        "placement": {},
    }
    write_manifest(folder, sign(manifest))
    return folder
