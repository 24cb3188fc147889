"""A bundle: OpenVINO graphs, tokenizer and configuration, listed in a manifest. This module checks it and reads it.

Nothing in a bundle is trusted until it has been checked: the manifest's structure and id, every path in it, every
file's size and sha256. A bundle is what its manifest lists: whatever else lies in the folder is never opened.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BundleError, boundary
from .hub import fetch
from .manifest import COMPONENTS, MANIFEST, NPU, SAFE_PATH, read_json, read_manifest, release, sizes
from .model import Model
from .names import near, short

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHECKSUMS = "SHA256SUMS"

# The element types of compressed weights.
_INTEGERS = {"i8", "u8", "i4", "u4"}

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
            folder = fetch(hub[1], revision or hub[2], _near(source))
        else:
            raise BundleError(
                f"{short(str(source))}: there is no such folder{_near(source)}, and it is not a Hub id (owner/name)"
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
                if not SAFE_PATH.fullmatch(name) or not self.path(name).is_file():
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
        config = read_json(self.path("config.json"))
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
                sizes=sizes(parts) if self.manifest["layout"] == NPU else None,
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
        if release(version("openvino")) < release(built):
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


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    with boundary(BundleError, f"{path}: not a tokenizer"):
        return _tokenizer(path.read_bytes())


@lru_cache(maxsize=2)
def _tokenizer(data: bytes) -> Tokenizer:
    """Shared by the bundles of a checkpoint: parsing 150,000 merges takes a third of a second."""
    from tokenizers import Tokenizer

    return Tokenizer.from_buffer(data)


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
