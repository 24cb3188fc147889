"""The Hugging Face Hub as a place for releases: one commit on a branch, then a tag, complete or not at all.

Every step can be repeated. So after a transient failure (a lost answer, someone else's commit in between, an upload
that stopped) the next attempt looks at the Hub again and does the steps that are still missing. The Hub keeps uploaded
content, so only missing content is sent again.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RemoteEntryNotFoundError, RepositoryNotFoundError

from pipeline.checkpoints.hub import CLIENT, ERRORS, RemoteFile, explained, is_intact, listing, status_of
from pipeline.release.attestations import read_checksums
from pipeline.release.prepare import SIGNATURE, release_files
from pipeline.stage import PipelineError
from qwen3_tts_ov.bundle import CHECKSUMS, Bundle
from qwen3_tts_ov.manifest import MANIFEST

ATTEMPTS = 6
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds; each wait is twice the one before
# The Hub is overloaded, or someone else was first: with a tag (409), with a commit (412).
TRANSIENT = frozenset((408, 409, 412, 425, 429, 500, 502, 503, 504))


@dataclass(frozen=True)
class Place:
    """Where a release goes. Without a tag, as for a nightly build, its branch names it."""

    repository: str
    private: bool
    branch: str
    tag: str | None

    def __str__(self) -> str:
        return f"{self.repository}@{self.tag or self.branch}"


@dataclass(frozen=True)
class Seen:
    """What the Hub holds at one moment.

    `branches` is empty if the repository does not exist. `head` is the commit to build upon, main's if the branch does
    not exist yet, and `files` are its files. `tagged` is the commit that the tag names, or empty.
    """

    branches: frozenset[str] = frozenset()
    head: str = ""
    tagged: str = ""
    files: dict[str, RemoteFile] = field(default_factory=dict)


def publish(place: Place, release: Bundle, dry_run: bool) -> str:
    """Publishes the release, or lists the steps that this would take; returns what was done.

    Transient failures are retried after growing waits. Raises PipelineError.
    """
    for attempt in range(ATTEMPTS):
        try:
            return publish_once(HfApi(library_name=CLIENT), place, release, dry_run)
        except Exception as error:  # the client wraps a failed upload in a bare RuntimeError
            cause = network_error(error)
            if cause is None:
                raise
            text = f"{place}: {explained(cause, 'conf/publish', 'publish.branch')}"
            if attempt == ATTEMPTS - 1 or not is_transient(cause):
                raise PipelineError(text) from error
            wait = max(min(FIRST_WAIT * 2**attempt, LONGEST_WAIT), requested_wait(cause))
            print(f"{text}; next attempt in {wait:.0f} s", file=sys.stderr)
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def publish_once(api: HfApi, place: Place, release: Bundle, dry_run: bool) -> str:
    """One attempt: takes the steps from what the Hub holds now to the release, or lists them."""
    seen, name = look(api, place), release.manifest["bundle_id"]
    already = f"{place}: {name[:12]} is published already"
    if seen.tagged:
        if (found := id_at(api, place, seen.tagged)) != name:
            raise PipelineError(f"{place} holds another bundle ({found[:12] or 'none'}); choose a new publish.tag")
        return already
    head, steps = seen.head, []
    if not seen.branches:
        steps.append(f"create the {'private' if place.private else 'public'} repository {place.repository}")
        if not dry_run:
            head = create(api, place)
    if place.branch not in {"main", *seen.branches}:
        steps.append(f"create the branch {place.branch}")
        if not dry_run:
            api.create_branch(place.repository, branch=place.branch, revision=head)
    if not holds(api, place, release, seen):
        added, stale = release_files(release.folder), left_over(api, place, release, seen)
        size = sum(release.path(name).stat().st_size for name in added)
        text = f"commit {len(added)} files, {size / 1e6:.1f} MB, on {seen.head[:12] or 'the first commit'}"
        steps.append(text + (f"; delete {', '.join(stale)}" if stale else ""))
        if not dry_run:
            head = commit(api, place, release, stale, head)
    if place.tag:
        steps.append(f"tag it {place.tag}")
        if not dry_run:
            api.create_tag(place.repository, tag=place.tag, revision=head)
    if not steps:
        return already
    if dry_run:
        return "\n".join([f"{place}: would", *(f"  {text}" for text in steps)])
    return f"{place}: published {name[:12]}, commit {head[:12]}"


def look(api: HfApi, place: Place) -> Seen:
    """Asks the Hub what it holds."""
    try:
        refs = api.list_repo_refs(place.repository)
    except RepositoryNotFoundError:
        return Seen()
    branches = {ref.name: ref.target_commit for ref in refs.branches}
    head = branches.get(place.branch) or branches["main"]
    tagged = next((ref.target_commit for ref in refs.tags if ref.name == place.tag), "")
    return Seen(frozenset(branches), head, tagged, listing(place.repository, head)[1])


def holds(api: HfApi, place: Place, release: Bundle, seen: Seen) -> bool:
    """Whether the branch has this bundle, every file identical to ours."""
    return (
        bool(seen.head)
        and id_at(api, place, seen.head) == release.manifest["bundle_id"]
        and all(
            name in seen.files and is_intact(seen.files[name], release.path(name)) for name in release.manifest["files"]
        )
    )


def left_over(api: HfApi, place: Place, release: Bundle, seen: Seen) -> list[str]:
    """Files that the previous release wrote and this one lacks; files from elsewhere are not among them."""
    if CHECKSUMS not in seen.files:
        return []
    written = {SIGNATURE, *read_checksums(read(api, place, CHECKSUMS, seen.head))}
    return sorted((written & set(seen.files)) - set(release_files(release.folder)))


def create(api: HfApi, place: Place) -> str:
    """Creates the repository; returns its first commit."""
    api.create_repo(place.repository, private=place.private, exist_ok=True)
    sha = api.repo_info(place.repository).sha
    if sha is None:
        raise PipelineError(f"{place.repository}: the Hub names no commit of main; look at the repository's page")
    return sha


def commit(api: HfApi, place: Place, release: Bundle, stale: list[str], parent: str) -> str:
    """Makes one commit on `parent`, which the Hub refuses if the branch has moved; returns the commit."""
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(name, release.path(name)) for name in release_files(release.folder)),
        *(CommitOperationDelete(name) for name in stale),
    ]
    message = "Release {variant} {precision} {layout} {bundle_id:.12}".format(**release.manifest)
    return api.create_commit(
        place.repository, operations, commit_message=message, revision=place.branch, parent_commit=parent
    ).oid


def id_at(api: HfApi, place: Place, revision: str) -> str:
    """The bundle id in the manifest at a commit; empty where that is missing or damaged."""
    try:
        return str(json.loads(read(api, place, MANIFEST, revision))["bundle_id"])
    except (RemoteEntryNotFoundError, ValueError, KeyError, TypeError):
        return ""


def read(api: HfApi, place: Place, name: str, revision: str) -> str:
    """The text of a file at a commit."""
    return Path(api.hf_hub_download(place.repository, name, revision=revision)).read_text(encoding="utf-8")


# ---- errors --------------------------------------------------------------------------------------------------------


def network_error(error: BaseException | None) -> Exception | None:
    """The error of the Hub or of the network that is, or caused, this one; None if there is none."""
    while error is not None and not isinstance(error, ERRORS):
        error = error.__cause__ or error.__context__
    return error


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    status = status_of(error)
    return status in TRANSIENT if status else not isinstance(error, HFValidationError)


def requested_wait(error: Exception) -> float:
    """The seconds that the Hub asks to wait, at most LONGEST_WAIT; 0 if it asks for none."""
    response = error.response if isinstance(error, HfHubHTTPError | httpx2.HTTPStatusError) else None
    asked = "" if response is None else response.headers.get("Retry-After", "")
    return min(float(asked), LONGEST_WAIT) if asked.isdecimal() else 0.0
