"""Files of a Hugging Face Hub repository: the listing, a fetch that resumes, their hashes, and errors explained."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

from pipeline.stage import PipelineError, fingerprint, one_line

CLIENT = "qwen3-tts-ov"  # the name that requests carry
# The errors of a failed request.
ERRORS = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, httpx2.HTTPError, ConnectionError)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a Hub repository: its URL, size in bytes, and the Hub's hash of it."""

    url: str
    size: int
    blob_id: str  # git's SHA-1 of the content, or of the pointer to it
    sha256: str | None  # of a file in large-file storage


def listing(repo: str, revision: str) -> tuple[str, dict[str, RemoteFile]]:
    """The 40-hex commit that a branch, tag or commit resolves to, and the files at it, by name.

    Raises one of ERRORS, and PipelineError for a listing that lacks what a fetch needs.
    """
    info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    commit = info.sha
    if commit is None or info.siblings is None:
        raise PipelineError(f"{repo}: the Hub lists no files for {revision}; check the repository on its page")
    remote = {}
    for file in info.siblings:
        if file.size is None or file.blob_id is None:
            raise PipelineError(f"{repo}: the Hub gives no size or hash for {file.rfilename}; try again")
        remote[file.rfilename] = RemoteFile(
            url=hf_hub_url(repo, file.rfilename, revision=commit),
            size=file.size,
            blob_id=file.blob_id,
            sha256=file.lfs.sha256 if file.lfs else None,
        )
    return commit, remote


def fetch(file: RemoteFile, path: Path) -> Path:
    """Downloads a file to `path`, resuming where an earlier run stopped, and returns the path.

    Raises one of ERRORS, and PipelineError, with the file removed, if its content does not have the Hub's hash.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    have = size_of(path)
    with path.open("r+b" if 0 < have <= file.size else "wb") as part:
        part.seek(0, os.SEEK_END)
        # Not hf_hub_download: since huggingface_hub 1.0 it starts a file again after a kill.
        headers = build_hf_headers(library_name=CLIENT)
        http_get(file.url, part, resume_size=part.tell(), headers=headers, expected_size=file.size)
    if not is_intact(file, path):
        path.unlink()
        raise PipelineError(f"{path.name}: its hash is not the one that the Hub gives; run again to get a fresh copy")
    return path


def is_intact(file: RemoteFile, path: Path) -> bool:
    """Whether a file here has the Hub's size and hash: SHA-256 in large-file storage, git's blob hash elsewhere."""
    if path.stat().st_size != file.size:
        return False
    if file.sha256 is not None:
        return fingerprint(path)["sha256"] == file.sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == file.blob_id


def size_of(path: Path) -> int:
    """Size in bytes; 0 for a file that does not exist."""
    return path.stat().st_size if path.exists() else 0


def status_of(error: Exception) -> int | None:
    """The HTTP status of a failed request; None if no answer came."""
    response = error.response if isinstance(error, HfHubHTTPError | httpx2.HTTPStatusError) else None
    return None if response is None else response.status_code


def explained(error: Exception, repo_setting: str, revision_setting: str) -> str:
    """What one of ERRORS means and what to do about it, in one line to follow the repository's name.

    `repo_setting` and `revision_setting` are the configuration keys to check, such as `variant.repo`.
    """
    status = status_of(error)
    match error:
        case RevisionNotFoundError():
            return f"the Hub knows no such revision; check {revision_setting}"
        case GatedRepoError():
            return "the repository is gated; ask for access on its page, then `hf auth login` or set HF_TOKEN"
        case RepositoryNotFoundError() if status == 404:
            return f"the Hub shows no such repository; check {repo_setting}, and HF_TOKEN if it is private"
        case HFValidationError():
            return f"not the name of a Hub repository (owner/name); check {repo_setting}"
        case OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set; unset it to reach the Hub"
    match status:
        case 401 | 403:
            return (
                f"the Hub denies access ({status}); check {repo_setting}, then `hf auth login` or set HF_TOKEN to a "
                "token with the rights that this needs"
            )
        case 409 | 412:
            return "someone else published there at the same time"
        case None:
            return f"the Hub cannot be reached ({one_line(error)}); check the network and HF_ENDPOINT"
    return f"the Hub answers {status} ({one_line(error)})"
