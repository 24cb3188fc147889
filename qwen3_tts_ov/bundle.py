"""A bundle: OpenVINO graphs, tokenizer and configuration under a manifest. Found, fetched and checked here.

Nothing in a bundle is trusted before it is checked: the manifest's shape and id, every path in it, every file's size
and sha256. Only files that the manifest names are ever opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BundleError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"
FORMAT = 1
LAYOUT = "native"
CONFIGURATION = ("config.json", "generation_config.json", "tokenizer.json")

_SPEAKING = ("text_embedding", "codec_embedding", "talker", "code_predictor", "speech_decoder")
_CLONING = ("residual_code_embedding", "speech_encoder", "speaker_encoder")
COMPONENTS = {"custom_voice": _SPEAKING, "voice_design": _SPEAKING, "base": _SPEAKING + _CLONING}

# What the manifest must hold; the whole schema is manifest.schema.json, which the pipeline validates against.
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
# Where a bundle was made and what was measured of it do not change what it is.
_NOT_HASHED = ("bundle_id", "evidence", "precisions", "provenance", "score", "smoke")

# Plain names joined by "/": not absolute, no "..", nothing hidden, nothing that a shell or a glob would read.
_SAFE_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(\S+))?")
# What may lie beside a bundle's files without being listed: a release's papers. They are never opened.
_PAPERS = re.compile(
    r"manifest\.json|SHA256SUMS|(README|LICENSE|NOTICE|CHANGELOG)[\w.]*|samples/[\w.-]+\.wav"
    r"|dvc\.lock|[\w.-]+\.(sig|cdx\.json|intoto\.json|html)"
)


@dataclass(frozen=True)
class Bundle:
    """A checked bundle on disk. `Bundle.load` makes one."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def load(cls, source: str | os.PathLike[str], revision: str | None = None, verify: bool = True) -> Bundle:
        """A bundle from a folder, or from the Hugging Face Hub by id (`owner/name`) and revision.

        `owner/name@revision` says both. A Hub bundle is fetched into the Hub's own cache; an interrupted fetch is taken
        up again. `verify` hashes every file; without it only presence and size are checked.

        Raises BundleError.
        """
        if str(source) and Path(source).is_dir():
            if revision is not None:
                raise BundleError(f"{source}: a folder has no revision; leave it out, or give a Hub id")
            folder = Path(source)
        elif (hub := _HUB_ID.fullmatch(str(source))) and not (hub[2] and revision):
            folder = _fetch(hub[1], revision or hub[2])
        else:
            raise BundleError(f"{source}: there is no such folder, and it is not a Hub id (owner/name)")
        bundle = cls(folder, read_manifest(folder))
        bundle.check(hashes=verify)
        return bundle

    def path(self, name: str) -> Path:
        """Where a file that the manifest lists lies."""
        return self.folder / name

    def check(self, hashes: bool = True) -> None:
        """Raises BundleError naming every file that is missing, changed, unlisted or a link out of the bundle."""
        files: dict[str, dict[str, Any]] = self.manifest["files"]
        faults = [fault for name, entry in files.items() if (fault := self._fault(name, entry["size"]))]
        faults += [f"{name} is not in the manifest" for name in sorted(set(_list(self.folder)) - set(files))]
        if not faults and hashes:
            with ThreadPoolExecutor() as pool:  # hashing runs outside of the interpreter's lock
                digests = pool.map(lambda name: sha256(self.path(name)), files)
                faults = [
                    f"{name} has changed (another sha256)"
                    for (name, entry), digest in zip(files.items(), digests, strict=True)
                    if digest != entry["sha256"]
                ]
        if faults:
            raise BundleError(f"{self.folder}: {'; '.join(faults)}; fetch or build the bundle again")

    def check_papers(self) -> None:
        """Raises BundleError naming every paper that is not as SHA256SUMS says; passes where there is none.

        The manifest's hashes cover what a bundle is. SHA256SUMS covers what else is said of it, and the manifest.
        """
        sums = self.path(CHECKSUMS)
        if not sums.is_file():
            return
        lines = sums.read_text("utf-8", errors="replace").splitlines()
        listed = dict(line.split("  ", 1)[::-1] for line in lines if "  " in line)
        files: dict[str, dict[str, Any]] = self.manifest["files"]
        papers = {name for name in _walk(self.folder) if _PAPERS.fullmatch(name)}
        papers -= {name for name in papers if name == CHECKSUMS or name.endswith(".sig")}  # a signature comes last
        found = {name: entry["sha256"] for name, entry in files.items()}
        found |= {name: sha256(self.path(name)) for name in papers}
        faults = [f"{name} is not in {CHECKSUMS}" for name in sorted(found.keys() - listed.keys())]
        faults += [f"{name} is missing, but in {CHECKSUMS}" for name in sorted(listed.keys() - found.keys())]
        faults += [
            f"{name} is not as {CHECKSUMS} says (another sha256)"
            for name in sorted(found.keys() & listed.keys())
            if found[name] != listed[name]
        ]
        if faults:
            raise BundleError(f"{self.folder}: {'; '.join(faults)}; fetch or build the bundle again")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The checkpoint's config.json."""
        return _read_json(self.path("config.json"))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's text tokenizer."""
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(str(self.path("tokenizer.json")))
        except Exception as error:  # the library raises nothing narrower
            raise BundleError(f"{self.path('tokenizer.json')}: not a tokenizer ({error})") from None

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
        """Of the speech, in Hz."""
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
    def languages(self) -> list[str]:
        return self.manifest["languages"]

    def _fault(self, name: str, size: int) -> str | None:
        path = self.path(name)
        if not path.is_file():
            return f"{name} is missing"
        target = path.resolve()
        if not any(target.is_relative_to(root) for root in _roots(self.folder)):
            return f"{name} is a link that leaves the bundle"
        found = target.stat().st_size
        return None if found == size else f"{name} has changed ({found} bytes, not {size})"


def verified(folder: Path) -> Bundle:
    """A bundle of any layout with every file checked; that of another runtime speaks only there. Raises BundleError."""
    bundle = Bundle(folder, read_manifest(folder, speaks=False))
    bundle.check()
    bundle.check_papers()
    return bundle


def read_manifest(folder: Path, speaks: bool = True) -> dict[str, Any]:
    """A folder's manifest, its shape, id and paths checked, and whether this runtime can speak from it.

    Raises BundleError.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder}: it has no {MANIFEST}, so it is not a bundle of this package")
    manifest = _read_json(path)
    faults = chain(_manifest_faults(manifest), _native_faults(manifest) if speaks else ())
    if fault := next(iter(faults), None):
        raise BundleError(f"{path}: {fault}")
    needed, present = manifest["minimum_openvino"], version("openvino")
    if _release(present) < _release(needed):
        raise BundleError(f"{folder}: the bundle needs OpenVINO {needed} or later, this is {present}; upgrade openvino")
    return manifest


def bundle_id(manifest: dict[str, Any]) -> str:
    """sha256 of the manifest's hashed parts, as JSON with sorted keys and no blanks."""
    hashed = {key: value for key, value in manifest.items() if key not in _NOT_HASHED}
    text = json.dumps(hashed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest_faults(manifest: Any) -> Iterator[str]:
    """What is wrong with a manifest; later checks rely on earlier ones, so only the first fault means anything."""
    if not isinstance(manifest, dict) or "format" not in manifest:
        yield "it is not a bundle's manifest (no format number)"
    if manifest["format"] != FORMAT:
        yield f"format {manifest['format']} is not one that this version reads ({FORMAT}); upgrade qwen3-tts-ov"
    for key, kind in _FIELDS.items():
        if not isinstance(manifest.get(key), kind):
            yield f"{key} is missing or of the wrong type"
    if manifest["kind"] not in COMPONENTS:
        yield f"kind {manifest['kind']!r} is not one of {', '.join(COMPONENTS)}"
    if min(manifest["sample_rate"], manifest["samples_per_frame"]) < 1:
        yield "sample_rate and samples_per_frame must be positive"
    if not re.fullmatch(r"\d+(\.\d+)*", manifest["minimum_openvino"]):
        yield f"minimum_openvino {manifest['minimum_openvino']!r} is not a version"
    for name, entry in manifest["files"].items():
        if not _SAFE_PATH.fullmatch(name):
            yield f"path {name!r} is not a plain relative path"
        if not (
            isinstance(entry, dict) and isinstance(entry.get("size"), int) and isinstance(entry.get("sha256"), str)
        ):
            yield f"file {name} has no size and sha256"
    if manifest["bundle_id"] != bundle_id(manifest):
        yield "bundle_id does not fit the content; the manifest was edited"


def _native_faults(manifest: dict[str, Any]) -> Iterator[str]:
    """What a sound manifest lacks for this runtime to speak."""
    if manifest["layout"] != LAYOUT:
        yield f"the layout is {manifest['layout']!r}, made for another runtime; this one reads {LAYOUT!r}"
    for name in COMPONENTS[manifest["kind"]]:
        entry = manifest["components"].get(name)
        if not isinstance(entry, dict):
            yield f"component {name} is missing"
        for part in ("xml", "bin"):
            if entry.get(part) not in manifest["files"]:
                yield f"component {name}: its {part} {entry.get(part)!r} is not among the files"
    for name in CONFIGURATION:
        if name not in manifest["files"]:
            yield f"{name} is not among the files"


def _fetch(repo: str, revision: str | None) -> Path:
    """The folder in the Hub's cache that holds a repository's bundle: the manifest first, then the files it names."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name = repo if revision is None else f"{repo} at {revision}"
    try:
        folder = Path(hf_hub_download(repo, MANIFEST, revision=revision)).parent
        files = list(read_manifest(folder)["files"])
        # The commit that the manifest came from, so that a push in between cannot mix two bundles.
        return Path(snapshot_download(repo, revision=folder.name, allow_patterns=[MANIFEST, *files]))
    except LocalEntryNotFoundError:
        raise BundleError(f"{name}: the Hub cannot be reached and the bundle is not in the local cache") from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise BundleError(f"{name}: {_HUB_REASONS.get(type(error).__name__) or _first_line(error)}") from None
    except OSError as error:
        raise BundleError(f"{name}: the fetch failed: {_first_line(error)}; run it again to go on") from None


_HUB_REASONS = {
    "RepositoryNotFoundError": "the Hub has no such repository, or it is private; check the name, or `hf auth login`",
    "GatedRepoError": "the repository is gated; ask for access on its page and `hf auth login`",
    "RevisionNotFoundError": "the repository has no such revision",
    "RemoteEntryNotFoundError": f"the repository has no {MANIFEST}, so it is not a bundle of this package",
    "EntryNotFoundError": f"the repository has no {MANIFEST}, so it is not a bundle of this package",
}


def _roots(folder: Path) -> Iterable[Path]:
    """Where the files may really lie: the folder and, for a snapshot in the Hub's cache, its repository's blobs.

    What came by Xet lies in the blobs that all repositories of the cache share.
    """
    real = folder.resolve()
    return (real, real.parents[1] / "blobs", real.parents[2] / "blobs") if real.parent.name == "snapshots" else (real,)


def _list(folder: Path) -> Iterator[str]:
    """Relative paths of what must be in the manifest: all but a release's papers."""
    return (name for name in _walk(folder) if not _PAPERS.fullmatch(name))


def _walk(folder: Path) -> Iterator[str]:
    """Relative paths of what lies in a folder, but hidden names (.git, .cache)."""
    for directory, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                yield Path(directory, name).relative_to(folder).as_posix()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read as JSON ({_first_line(error)})") from None


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
