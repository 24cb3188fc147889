"""The one rule for everything that is written: not onto an input, not into a bundle, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import AudioError

MANIFEST = "manifest.json"  # not from bundle.py: every stage of the pipeline depends on what is imported here


def check_file(path: Path, endings: Sequence[str], inputs: Iterable[Path] = ()) -> None:
    """Raises AudioError unless a file with one of these endings can be written at `path` and hurts nothing there.

    `inputs` are what the same command reads.
    """
    suffix = path.suffix.lower()
    if suffix not in endings:
        known = f"the ending{'s are' if len(endings) > 1 else ' is'} {', '.join(endings)}"
        raise AudioError(f"{path}: cannot write {suffix or 'a file without ending'}; {known}")
    if not path.parent.is_dir():
        raise AudioError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise AudioError(f"{path}: it is a folder; give a file name")
    if path.exists():
        if not stat.S_ISREG(path.stat().st_mode):
            raise AudioError(f"{path}: it is a pipe or a device; give a file name")
        if not os.access(path, os.W_OK):
            raise AudioError(f"{path}: it is write-protected; give another name, or unprotect it")
    check_place(path, inputs)


def check_place(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Raises AudioError if a file or folder written at `path` would replace an input or lie in a bundle."""
    place = path.resolve()
    for given in inputs:
        if _same(path, given) or place in given.resolve().parents:
            raise AudioError(f"{path}: writing it would overwrite {given}, which is read; give another name")
    for folder in place.parents:
        if (folder / MANIFEST).is_file() and b'"bundle_id"' in (folder / MANIFEST).read_bytes():
            raise AudioError(f"{path}: it would lie in the bundle {folder}, which stays as it is; give another folder")


def partial_of(path: Path) -> Path:
    """Where a file lies, beside its place, until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def put(partial: Path, path: Path) -> None:
    """Moves a finished file to its place, its data first through to the disk. Raises AudioError where that fails."""
    try:
        with partial.open("rb") as written:
            os.fsync(written.fileno())  # a full disk may show only now
        partial.replace(path)
    except OSError as error:
        raise failure(path, error) from None


def write(path: Path, data: bytes) -> None:
    """Writes a file whole or, raising AudioError, not at all."""
    partial = partial_of(path)
    try:
        try:
            partial.write_bytes(data)
        except OSError as error:
            raise failure(path, error) from None
        put(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def failure(path: Path, error: BaseException) -> AudioError:
    """The error to raise where the system refuses to write."""
    reason = getattr(error, "strerror", None) or "the disk may be full"  # libsndfile says no more than "System error"
    return AudioError(f"{path}: cannot write it ({reason}); nothing was changed")


def _same(path: Path, given: Path) -> bool:
    try:
        return path.samefile(given)
    except OSError:  # one of them does not exist
        return path.resolve() == given.resolve()
