"""A bundle: OpenVINO graphs, tokenizer and configuration, listed in a manifest. This module fetches and checks it.

Nothing in a bundle is trusted until it has been checked: the manifest's structure and id, every path in it, every
file's size and sha256. A bundle is what its manifest lists: whatever else lies in the folder is never opened.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BundleError, boundary, first_line
from .home import some_home
from .model import Model, Sizes
from .names import near

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"
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

# The element types of compressed weights.
_INTEGERS = {"i8", "u8", "i4", "u4"}

# Plain names joined by "/": not absolute, no "..", nothing hidden, no character special to a shell or a glob.
_SAFE_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(\S+))?")


@dataclass(frozen=True)
class Bundle:
    """A checked bundle on disk, as `Bundle.load` returns it."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def load(cls, source: str | os.PathLike[str], revision: str | None = None, verify: bool = True) -> Bundle:
        """A bundle from a folder, or from the Hugging Face Hub by id (`owner/name`) and revision.

        `owner/name@revision` gives both. A Hub bundle is fetched into the Hub's own cache; an interrupted fetch is
        resumed. `verify` hashes every file; without it only presence and size are checked.

        Raises BundleError.
        """
        if _is_folder(source):
            if revision is not None:
                raise BundleError(f"{source}: a folder has no revision; leave it out, or give a Hub id")
            folder = Path(source)
        elif (hub := _HUB_ID.fullmatch(str(source))) and not (hub[2] and revision):
            folder = _fetch(hub[1], revision or hub[2], _near(source))
        else:
            raise BundleError(
                f"{_shown(source)}: there is no such folder{_near(source)}, and it is not a Hub id (owner/name)"
            )
        bundle = cls(folder, read_manifest(folder))
        bundle.check(hashes=verify)
        return bundle

    def path(self, name: str) -> Path:
        """The path of a file listed in the manifest."""
        return self.folder / name

    def check(self, hashes: bool = True) -> None:
        """Raises BundleError naming every listed file that is missing, changed or a link out of the bundle."""
        files: dict[str, dict[str, Any]] = self.manifest["files"]
        with boundary(BundleError, f"{self.folder}: cannot be read"), ThreadPoolExecutor() as pool:
            faults = [fault for name, entry in files.items() if (fault := self._fault(name, entry["size"]))]
            if not faults and hashes:  # hashing releases the interpreter's lock
                digests = pool.map(lambda name: sha256(self.path(name)), files)
                faults = [
                    f"{name} has changed (its sha256 differs)"
                    for (name, entry), digest in zip(files.items(), digests, strict=True)
                    if digest != entry["sha256"]
                ]
        if faults:
            raise BundleError(f"{self.folder}: {'; '.join(faults)}; fetch or build the bundle again")

    def check_papers(self) -> None:
        """Raises BundleError naming every file that does not match SHA256SUMS; passes without that file.

        The manifest's hashes cover the bundle itself, after `check`; SHA256SUMS also covers the manifest and a
        release's papers.
        """
        listed, files = self._checksums(), self.manifest["files"]
        faults = [f"{name} is not in {CHECKSUMS}" for name in sorted(files.keys() - listed.keys()) if listed]
        with boundary(BundleError, f"{self.folder}: cannot be read"):
            for name, digest in sorted(listed.items()):
                if not _SAFE_PATH.fullmatch(name) or not self.path(name).is_file():
                    faults.append(f"{name} is missing, but listed in {CHECKSUMS}")
                elif self._leaves(name) or digest != (
                    files[name]["sha256"] if name in files else sha256(self.path(name))
                ):
                    faults.append(f"{name} does not match {CHECKSUMS} (its sha256 differs)")
        if faults:
            raise BundleError(f"{self.folder}: {'; '.join(faults)}; fetch or build the bundle again")

    def foreign(self) -> list[str]:
        """Files in the folder that neither manifest nor SHA256SUMS lists, hidden ones and signatures left out."""
        listed = {MANIFEST, CHECKSUMS, *self.manifest["files"], *self._checksums()}
        return sorted(name for name in _walk(self.folder) if name not in listed and not name.endswith(".sig"))

    def _checksums(self) -> dict[str, str]:
        """The sha256 of every file that SHA256SUMS lists; empty without that file."""
        sums = self.path(CHECKSUMS)
        with boundary(BundleError, f"{sums}: cannot be read"):
            lines = sums.read_text("utf-8", errors="replace").splitlines() if sums.is_file() else []
        return dict(line.split("  ", 1)[::-1] for line in lines if "  " in line)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The checkpoint's config.json."""
        config = _read_json(self.path("config.json"))
        if not isinstance(config, dict) or config.get("tts_model_type") != self.kind or "talker_config" not in config:
            raise BundleError(f"{self.path('config.json')}: not the configuration of a {self.kind} checkpoint")
        return config

    @cached_property
    def model(self) -> Model:
        """The part of the bundle that a Synthesizer speaks with."""
        with boundary(BundleError, f"{self.folder}: the manifest lacks what speaking needs", repr):
            self._warn_of_older_openvino()
            parts = {name: self.manifest["components"][name] for name in self.components}
            return Model(
                name=f"{self.manifest['variant']}-{self.manifest['precision']}",
                graphs={name: self.path(part["xml"]) for name, part in parts.items()},
                config=self.config,
                generation=self.manifest["generation"],
                tokenizer=_read_tokenizer(self.path("tokenizer.json")),
                sample_rate=self.sample_rate,
                samples_per_frame=self.samples_per_frame,
                default_voice=self.default_voice,
                placement=self.manifest["placement"],
                integer_weights=frozenset(name for name, part in parts.items() if _INTEGERS & part["precision"].keys()),
                cache_key=self.manifest["bundle_id"],
                sizes=_sizes(parts) if self.manifest["layout"] == NPU else None,
            )

    @property
    def kind(self) -> str:
        """`custom_voice`, `voice_design` or `base`."""
        return self.manifest["kind"]

    @property
    def components(self) -> tuple[str, ...]:
        """The graphs that this kind of bundle holds."""
        return COMPONENTS[self.kind]

    @property
    def sample_rate(self) -> int:
        """The sample rate of the speech, in Hz."""
        return self.manifest["sample_rate"]

    @property
    def samples_per_frame(self) -> int:
        return self.manifest["samples_per_frame"]

    @property
    def frames_per_second(self) -> float:
        return self.sample_rate / self.samples_per_frame

    @property
    def speakers(self) -> list[str]:
        """Voices by name; empty unless the kind is `custom_voice`."""
        return self.manifest["speakers"]

    @property
    def default_voice(self) -> str | None:
        """The voice used when none is named: the manifest's, or else the checkpoint's first; None without voices."""
        speakers = self.config["talker_config"].get("spk_id") or {}
        return self.manifest.get("default_voice") or next(iter(speakers), None)

    @property
    def languages(self) -> list[str]:
        return self.manifest["languages"]

    def _fault(self, name: str, size: int) -> str | None:
        path = self.path(name)
        if not path.is_file():
            return f"{name} is missing"
        if self._leaves(name):
            return f"{name} is a link that leaves the bundle"
        found = path.stat().st_size
        return None if found == size else f"{name} has changed ({found} bytes, not {size})"

    def _leaves(self, name: str) -> bool:
        """Whether a path leads out of the bundle."""
        target = self.path(name).resolve()
        return not any(target.is_relative_to(root) for root in _roots(self.folder))

    def _warn_of_older_openvino(self) -> None:
        """The speech is the same from `minimum_openvino` on; how fast it comes was measured with the one that built."""
        built = self.manifest.get("provenance", {}).get("versions", {}).get("openvino", "0")
        if _release(version("openvino")) < _release(built):
            logging.getLogger(__name__).warning(
                "OpenVINO %s is older than %s, with which the bundle was built: speaking may be slower",
                version("openvino"),
                built,
            )


def verified(folder: Path) -> Bundle:
    """A bundle of any layout, every file checked, whether or not this runtime speaks from it. Raises BundleError."""
    bundle = Bundle(folder, read_manifest(folder, speaks=False))
    bundle.check()
    bundle.check_papers()
    return bundle


def read_manifest(folder: Path, speaks: bool = True) -> dict[str, Any]:
    """A folder's manifest, after checking its structure, id and paths, and that this runtime can speak from it.

    Raises BundleError.
    """
    path = folder / MANIFEST
    with boundary(BundleError, f"{folder}: cannot be read"):
        found = path.is_file()
    if not found:
        raise BundleError(f"{folder}: it has no {MANIFEST}, so it is not a bundle of this package")
    manifest = _read_json(path)
    try:
        with boundary(BundleError, "it is not a bundle's manifest"):
            _check_manifest(manifest)
            if speaks:
                _check_spoken(manifest)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    needed, present = manifest["minimum_openvino"], version("openvino")
    if _release(present) < _release(needed):  # it cannot load the graphs, or speaks other codes
        raise BundleError(f"{folder}: the bundle needs OpenVINO {needed} or later, this is {present}; upgrade openvino")
    return manifest


def bundle_id(manifest: dict[str, Any]) -> str:
    """The sha256 of the manifest's hashed parts, as JSON with sorted keys and no whitespace."""
    hashed = {key: value for key, value in manifest.items() if key not in _NOT_HASHED}
    text = json.dumps(hashed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        if not _SAFE_PATH.fullmatch(name):
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
        _sizes(manifest["components"])
    for name in CONFIGURATION:
        if name not in manifest["files"]:
            raise BundleError(f"{name} is not among the files")


def _sizes(parts: Mapping[str, Mapping[str, Any]]) -> Sizes:
    """What the graphs of the npu layout were built for, from their entries in the manifest. Raises BundleError."""
    found = {name: size for part in parts.values() for name, size in part.get("sizes", {}).items()}
    if set(found) != set(Sizes.__annotations__) or not all(
        isinstance(size, int) and size > 0 for size in found.values()
    ):
        raise BundleError(f"the components of the npu layout need the sizes {', '.join(Sizes.__annotations__)}")
    return Sizes(**found)


def _fetch(repo: str, revision: str | None, hint: str) -> Path:
    """Fetches the manifest, then the files it lists; returns their folder in the Hub's cache.

    `hint` goes into an error's message: a folder may have been meant.
    """
    name = repo if revision is None else f"{repo} at {revision}"
    with boundary(BundleError, f"{name}{hint}", _hub_reason):
        with some_home():
            from huggingface_hub import hf_hub_download, snapshot_download

        folder = Path(hf_hub_download(repo, MANIFEST, revision=revision)).parent
        files = list(read_manifest(folder)["files"])
        # The commit that the manifest came from, so that a push in between cannot mix two bundles.
        return Path(snapshot_download(repo, revision=folder.name, allow_patterns=[MANIFEST, *files]))


def _hub_reason(error: Exception) -> str:
    """Why a fetch failed, and what to do. The client raises its own errors, httpx2's, hf_xet's and the system's."""
    from huggingface_hub.errors import HFValidationError

    for kind in type(error).__mro__:
        if kind.__name__ in _HUB_REASONS:
            return _HUB_REASONS[kind.__name__]
    if isinstance(error, HFValidationError):
        return first_line(error)
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        return f"the Hub's cache cannot be written ({first_line(error)}); set HF_HOME to a folder that can"
    return f"the fetch failed: {first_line(error)}; run it again to resume"


_HUB_REASONS = {
    "LocalEntryNotFoundError": "the Hub cannot be reached and the bundle is not in the local cache",
    "RepositoryNotFoundError": "the Hub has no such repository, or it is private; check the name, or `hf auth login`",
    "GatedRepoError": "the repository is gated; ask for access on its page and `hf auth login`",
    "RevisionNotFoundError": "the repository has no such revision",
    "RemoteEntryNotFoundError": f"the repository has no {MANIFEST}, so it is not a bundle of this package",
    "EntryNotFoundError": f"the repository has no {MANIFEST}, so it is not a bundle of this package",
}


def _roots(folder: Path) -> Iterable[Path]:
    """Folders that files may resolve to: the bundle's own and, for a snapshot in the Hub's cache, its blobs.

    Files fetched by Xet are in the blobs folder that all repositories of the cache share.
    """
    real = folder.resolve()
    return (real, real.parents[1] / "blobs", real.parents[2] / "blobs") if real.parent.name == "snapshots" else (real,)


def _walk(folder: Path) -> Iterator[str]:
    """Relative paths of all files in a folder, except hidden ones (.git, .cache)."""
    for directory, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                yield Path(directory, name).relative_to(folder).as_posix()


def _read_tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    with boundary(BundleError, f"{path}: not a tokenizer"):
        return Tokenizer.from_file(str(path))


def _read_json(path: Path) -> Any:
    with boundary(BundleError, f"{path}: cannot be read as JSON"):
        return json.loads(path.read_text(encoding="utf-8"))


def _is_folder(source: str | os.PathLike[str]) -> bool:
    """Raises BundleError for a place that may not be looked at."""
    try:
        return bool(str(source)) and Path(source).is_dir()
    except PermissionError as error:
        raise BundleError(f"{source}: cannot be read ({error.strerror})") from None
    except OSError:  # a name that is too long
        return False


def _near(source: str | os.PathLike[str]) -> str:
    """A suggestion for the first part of a path that does not exist."""
    try:
        missing = next(place for place in (*reversed(Path(source).parents), Path(source)) if not place.exists())
        return near(missing.name, (place.name for place in missing.parent.iterdir() if place.is_dir()))
    except (OSError, ValueError, StopIteration):  # a folder that may not be listed, a name that cannot be one
        return ""


def _shown(source: str | os.PathLike[str]) -> str:
    text = str(source)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])
