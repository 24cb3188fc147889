"""Fetches a bundle from the Hugging Face Hub into the Hub's own cache."""

from __future__ import annotations

import errno
from pathlib import Path

from .errors import BundleError, boundary, first_line
from .home import some_home
from .manifest import MANIFEST, read_manifest


def fetch(repo: str, revision: str | None, hint: str) -> Path:
    """Fetches the manifest, then the files it lists; returns their folder in the Hub's cache.

    `hint` goes into an error's message: a folder may have been meant. Raises BundleError.
    """
    name = repo if revision is None else f"{repo} at {revision}"
    with boundary(BundleError, f"{name}{hint}", _reason):
        with some_home():
            from huggingface_hub import hf_hub_download, snapshot_download

        folder = Path(hf_hub_download(repo, MANIFEST, revision=revision)).parent
        files = list(read_manifest(folder)["files"])
        # The commit that the manifest came from, so that a push in between cannot mix two bundles.
        return Path(snapshot_download(repo, revision=folder.name, allow_patterns=[MANIFEST, *files]))


def _reason(error: Exception) -> str:
    """Why a fetch failed, and what to do. The client raises its own errors, httpx2's, hf_xet's and the system's."""
    from huggingface_hub.errors import HFValidationError

    for kind in type(error).__mro__:
        if kind.__name__ in _REASONS:
            return _REASONS[kind.__name__]
    if isinstance(error, HFValidationError):
        return first_line(error)
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        return f"the Hub's cache cannot be written ({first_line(error)}); set HF_HOME to a folder that can"
    return f"the fetch failed: {first_line(error)}; run it again to resume"


_REASONS = {
    "LocalEntryNotFoundError": "the Hub cannot be reached and the bundle is not in the local cache",
    "RepositoryNotFoundError": "the Hub has no such repository, or it is private; check the name, or `hf auth login`",
    "GatedRepoError": "the repository is gated; ask for access on its page and `hf auth login`",
    "RevisionNotFoundError": "the repository has no such revision",
    "RemoteEntryNotFoundError": f"the repository has no {MANIFEST}, so it is not a bundle of this package",
    "EntryNotFoundError": f"the repository has no {MANIFEST}, so it is not a bundle of this package",
}
