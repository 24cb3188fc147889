"""A bundle's manifest: read, and checked for structure, id and paths before anything in it is trusted."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .errors import BundleError, boundary
from .model import Sizes

MANIFEST = "manifest.json"
FORMAT = 1
NATIVE, NPU = "native", "npu"  # the layouts that this runtime speaks from
CONFIGURATION = ("config.json", "generation_config.json", "tokenizer.json")

_SPEAKING = ("text_embedding", "codec_embedding", "talker", "code_predictor", "speech_decoder")
_CLONING = ("residual_code_embedding", "speech_encoder", "speaker_encoder")
COMPONENTS = {"custom_voice": _SPEAKING, "voice_design": _SPEAKING, "base": _SPEAKING + _CLONING}

# The keys that a manifest must have; the full schema, which the pipeline validates, is manifest.schema.json.
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "bundle_id": str,
    "variant": str,
    "kind": str,
    "precision": str,
    "layout": str,
    "source": dict,
    "minimum_openvino": str,
    "sample_rate": int,
    "samples_per_frame": int,
    "components": dict,
    "files": dict,
    "languages": list,
    "speakers": list,
    "generation": dict,
    "placement": dict,
}
# Provenance and measurements are not part of a bundle's identity.
_NOT_HASHED = ("bundle_id", "evidence", "missed", "precisions", "provenance", "score", "smoke")

# Plain names joined by "/": not absolute, no "..", nothing hidden, no character special to a shell or a glob.
SAFE_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


def read_manifest(folder: Path, speaks: bool = True) -> dict[str, Any]:
    """A folder's manifest, after checking its structure, id and paths, and that this runtime can speak from it.

    Raises BundleError.
    """
    path = folder / MANIFEST
    with boundary(BundleError, f"{folder}: cannot be read"):
        found = path.is_file()
    if not found:
        raise BundleError(f"{folder}: it has no {MANIFEST}, so it is not a bundle of this package")
    manifest = read_json(path)
    try:
        with boundary(BundleError, "it is not a bundle's manifest"):
            _check_manifest(manifest)
            if speaks:
                _check_spoken(manifest)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    needed, present = manifest["minimum_openvino"], version("openvino")
    if release(present) < release(needed):  # it cannot load the graphs, or speaks other codes
        raise BundleError(f"{folder}: the bundle needs OpenVINO {needed} or later, this is {present}; upgrade openvino")
    return manifest


def bundle_id(manifest: dict[str, Any]) -> str:
    """The sha256 of the manifest's hashed parts, as JSON with sorted keys and no whitespace."""
    hashed = {key: value for key, value in manifest.items() if key not in _NOT_HASHED}
    text = json.dumps(hashed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sizes(parts: Mapping[str, Mapping[str, Any]]) -> Sizes:
    """What the graphs of the npu layout were built for, from their entries in the manifest. Raises BundleError."""
    found = {name: size for part in parts.values() for name, size in part.get("sizes", {}).items()}
    if set(found) != set(Sizes.__annotations__) or not all(
        isinstance(size, int) and size > 0 for size in found.values()
    ):
        raise BundleError(f"the components of the npu layout need the sizes {', '.join(Sizes.__annotations__)}")
    return Sizes(**found)


def read_json(path: Path) -> Any:
    """What a JSON file of a bundle holds. Raises BundleError."""
    with boundary(BundleError, f"{path}: cannot be read as JSON"):
        return json.loads(path.read_text(encoding="utf-8"))


def release(text: str) -> tuple[int, ...]:
    """The numbers of a version that releases are compared by: year and number."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def _check_manifest(manifest: Any) -> None:
    """Raises BundleError for the first fault in a manifest's structure, id or paths."""
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise BundleError("it is not a bundle's manifest (no format number)")
    if manifest["format"] != FORMAT:
        raise BundleError(
            f"format {manifest['format']} is not one that this version reads ({FORMAT}); upgrade qwen3-tts-ov"
        )
    for key, kind in _FIELDS.items():
        if not isinstance(manifest.get(key), kind):
            raise BundleError(f"{key} is missing or of the wrong type")
    for key in ("languages", "speakers"):
        if not all(isinstance(name, str) for name in manifest[key]):
            raise BundleError(f"{key} is not a list of names")
    if manifest["kind"] not in COMPONENTS:
        raise BundleError(f"kind {manifest['kind']!r} is not one of {', '.join(COMPONENTS)}")
    if min(manifest["sample_rate"], manifest["samples_per_frame"]) < 1:
        raise BundleError("sample_rate and samples_per_frame must be positive")
    if manifest.get("default_voice", None) not in (None, *manifest["speakers"]):
        raise BundleError(f"default_voice {manifest['default_voice']!r} is not one of the speakers")
    if not re.fullmatch(r"\d+(\.\d+)*", manifest["minimum_openvino"]):
        raise BundleError(f"minimum_openvino {manifest['minimum_openvino']!r} is not a version")
    for name, entry in manifest["files"].items():
        if not SAFE_PATH.fullmatch(name):
            raise BundleError(f"path {name!r} is not a plain relative path")
        if not (
            isinstance(entry, dict) and isinstance(entry.get("size"), int) and isinstance(entry.get("sha256"), str)
        ):
            raise BundleError(f"file {name} has no size and sha256")
    if manifest["bundle_id"] != bundle_id(manifest):
        raise BundleError("bundle_id does not match the content; the manifest was edited")


def _check_spoken(manifest: dict[str, Any]) -> None:
    """Raises BundleError unless this runtime can speak from a bundle with this (checked) manifest."""
    if manifest["layout"] not in (NATIVE, NPU):
        known = f"{NATIVE!r} and {NPU!r}"
        raise BundleError(f"the layout is {manifest['layout']!r}, made for another runtime; this one reads {known}")
    for name in COMPONENTS[manifest["kind"]]:
        entry = manifest["components"].get(name)
        if not isinstance(entry, dict):
            raise BundleError(f"component {name} is missing")
        for part in ("xml", "bin"):
            if entry.get(part) not in manifest["files"]:
                raise BundleError(f"component {name}: its {part} {entry.get(part)!r} is not among the files")
    if manifest["layout"] == NPU:
        sizes(manifest["components"])
    for name in CONFIGURATION:
        if name not in manifest["files"]:
            raise BundleError(f"{name} is not among the files")
