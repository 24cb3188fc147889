"""The Hugging Face Hub as a place for releases: one commit on a branch, then a tag, whole or not at all.

Every step may be repeated, so whatever fails and may pass is answered by looking at the Hub again and doing what is
still missing: an answer that was lost, a commit that came in between, an upload that stopped. Uploaded content stays
with the Hub, so only what it lacks is sent again.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from pipeline.download import RemoteFile, is_intact, listing
from pipeline.release.attestations import list_files, read_checksums
from pipeline.release.prepare import SIGNATURE
from pipeline.stage import PipelineError, one_line
from qwen3_tts_ov.bundle import CHECKSUMS, MANIFEST, Bundle

ATTEMPTS = 6
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds; each wait is twice the one before
# Too early or too much for the Hub, or somebody else was first: with a tag (409), with a commit (412).
PASSING = frozenset((408, 409, 412, 425, 429, 500, 502, 503, 504))


@dataclass(frozen=True)
class Place:
    """Where a release goes. Without a tag it is known by its branch, as a nightly build is."""

    repository: str
    private: bool
    branch: str
    tag: str | None

    def __str__(self) -> str:
        return f"{self.repository}@{self.tag or self.branch}"


@dataclass(frozen=True)
class Seen:
    """What the Hub holds at one moment.

    `branches` of the repository, none where there is no repository; `head`, the commit to build upon, which is main's
    where the branch is still missing, and its files; `tagged`, the commit that has the tag.
    """

    branches: frozenset[str] = frozenset()
    head: str = ""
    tagged: str = ""
    files: dict[str, RemoteFile] = field(default_factory=dict)


# What is to be done, for people, and how: from the commit before it to the commit after it.
Step = tuple[str, Callable[[str], str]]


def publish(place: Place, release: Bundle, dry_run: bool) -> str:
    """Brings the release to its place, or says what that would take; returns what was done.

    What fails and may pass is tried again after a wait, and again after longer ones. Raises PipelineError.
    """
    wait = FIRST_WAIT
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return publish_once(HfApi(library_name="qwen3-tts-ov"), place, release, dry_run)
        except Exception as error:  # the client wraps what failed in an upload in a bare RuntimeError
            cause = network_error(error)
            if cause is None:
                raise
            if attempt == ATTEMPTS or not may_pass(cause):
                raise PipelineError(f"{place}: {explained(cause)}") from error
            pause = max(wait, asked_wait(cause))
            print(f"{place}: {explained(cause)}; looking again in {pause:.0f} s", file=sys.stderr)
        time.sleep(pause)
        wait = min(2 * wait, LONGEST_WAIT)
    raise AssertionError("the last attempt returns or raises")


def publish_once(api: HfApi, place: Place, release: Bundle, dry_run: bool) -> str:
    """One attempt, from what the Hub holds now."""
    seen, name = look(api, place), release.manifest["bundle_id"][:12]
    if seen.tagged and (found := manifest_at(api, place, seen.tagged).get("bundle_id")) != name_of(release):
        raise PipelineError(f"{place} holds another bundle ({str(found)[:12]}); choose a new publish.tag")
    steps = [] if seen.tagged else plan(api, place, release, seen)
    if not steps:
        return f"{place}: {name} is published already"
    if dry_run:
        return "\n".join([f"{place}: would", *(f"  {text}" for text, _ in steps)])
    commit = seen.head
    for _, act in steps:
        commit = act(commit)
    return f"{place}: published {name}, commit {commit[:12]}"


def look(api: HfApi, place: Place) -> Seen:
    """What the Hub holds."""
    try:
        refs = api.list_repo_refs(place.repository)
    except RepositoryNotFoundError:
        return Seen()
    branches = {ref.name: ref.target_commit for ref in refs.branches}
    head = branches.get(place.branch) or branches["main"]
    tagged = next((ref.target_commit for ref in refs.tags if ref.name == place.tag), "")
    return Seen(frozenset(branches), head, tagged, listing(place.repository, head)[1])


def plan(api: HfApi, place: Place, release: Bundle, seen: Seen) -> list[Step]:
    """The steps from what the Hub holds to the release; none where it stands there."""
    steps: list[Step] = []
    if not seen.branches:
        visibility = "private" if place.private else "public"
        steps.append((f"create the {visibility} repository {place.repository}", lambda _: create(api, place)))
    if place.branch not in {"main", *seen.branches}:
        steps.append((f"create the branch {place.branch}", lambda head: branch(api, place, head)))
    if not holds(api, place, release, seen):
        added, stale = list_files(release.folder), left_over(api, place, release, seen)
        size = sum(release.path(name).stat().st_size for name in added)
        parent = seen.head[:12] if seen.head else "the first commit"
        text = f"commit {len(added)} files, {size / 1e6:.1f} MB, on {parent}"
        deleted = f"; delete {', '.join(stale)}" if stale else ""
        steps.append((text + deleted, lambda parent: commit(api, place, release, stale, parent)))
    if place.tag:
        steps.append((f"tag it {place.tag}", lambda head: tag(api, place, head)))
    return steps


def holds(api: HfApi, place: Place, release: Bundle, seen: Seen) -> bool:
    """Whether the branch has this bundle, each file as it is here."""
    return (
        bool(seen.head)
        and manifest_at(api, place, seen.head, seen.files).get("bundle_id") == name_of(release)
        and all(
            name in seen.files and is_intact(seen.files[name], release.path(name)) for name in release.manifest["files"]
        )
    )


def left_over(api: HfApi, place: Place, release: Bundle, seen: Seen) -> list[str]:
    """What the release before wrote and this one does not have; nothing that came from elsewhere."""
    if CHECKSUMS not in seen.files:
        return []
    written = {SIGNATURE, *read_checksums(read(api, place, CHECKSUMS, seen.head))}
    return sorted((written & set(seen.files)) - set(list_files(release.folder)))


def create(api: HfApi, place: Place) -> str:
    """Creates the repository; returns its first commit."""
    api.create_repo(place.repository, private=place.private, exist_ok=True)
    sha = api.repo_info(place.repository).sha
    if sha is None:
        raise PipelineError(f"{place.repository}: the Hub names no commit of main; look at the repository's page")
    return sha


def branch(api: HfApi, place: Place, head: str) -> str:
    """Creates the branch at a commit, and returns that."""
    api.create_branch(place.repository, branch=place.branch, revision=head)
    return head


def commit(api: HfApi, place: Place, release: Bundle, stale: list[str], parent: str) -> str:
    """Puts everything into one commit on `parent`, which the Hub refuses if the branch moved; returns the commit."""
    manifest = release.manifest
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(name, release.path(name)) for name in list_files(release.folder)),
        *(CommitOperationDelete(name) for name in stale),
    ]
    message = f"Release {manifest['variant']} {manifest['precision']} {manifest['layout']} {name_of(release)[:12]}"
    return api.create_commit(
        place.repository, operations, commit_message=message, revision=place.branch, parent_commit=parent
    ).oid


def tag(api: HfApi, place: Place, head: str) -> str:
    """Tags a commit, and returns it."""
    assert place.tag is not None
    api.create_tag(place.repository, tag=place.tag, revision=head)
    return head


def manifest_at(api: HfApi, place: Place, revision: str, files: dict[str, RemoteFile] | None = None) -> dict:
    """The manifest at a commit; empty where there is none, or none that can be read."""
    if MANIFEST not in (listing(place.repository, revision)[1] if files is None else files):
        return {}
    try:
        manifest = json.loads(read(api, place, MANIFEST, revision))
    except ValueError:
        return {}
    return manifest if isinstance(manifest, dict) else {}


def read(api: HfApi, place: Place, name: str, revision: str) -> str:
    """The text of a file at a commit."""
    return Path(api.hf_hub_download(place.repository, name, revision=revision)).read_text(encoding="utf-8")


def name_of(release: Bundle) -> str:
    """The bundle id."""
    return release.manifest["bundle_id"]


# ---- errors --------------------------------------------------------------------------------------------------------


def network_error(error: BaseException) -> Exception | None:
    """The error that came from the Hub or from the way there, itself or the cause of another; None if there is none."""
    kinds = (HfHubHTTPError, HFValidationError, httpx2.HTTPError, LocalEntryNotFoundError, ConnectionError)
    return next((found for found in chain_of(error) if isinstance(found, kinds)), None)


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what caused it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    status = status_of(error)
    return status in PASSING if status else not isinstance(error, HFValidationError)


def status_of(error: Exception) -> int | None:
    """The status that the Hub answered with; None where no answer came."""
    response = error.response if isinstance(error, HfHubHTTPError | httpx2.HTTPStatusError) else None
    return None if response is None else response.status_code


def asked_wait(error: Exception) -> float:
    """The seconds that the Hub asks to wait, up to the longest wait here."""
    response = error.response if isinstance(error, HfHubHTTPError | httpx2.HTTPStatusError) else None
    asked = "" if response is None else response.headers.get("Retry-After", "")
    return min(float(asked), LONGEST_WAIT) if asked.isdecimal() else 0.0


def explained(error: Exception) -> str:
    """One line about a failed request: what to do about it."""
    match status_of(error):
        case None if isinstance(error, HFValidationError):
            return f"not a name that the Hub takes ({one_line(error)}); check conf/publish"
        case None:
            return f"the Hub cannot be reached ({one_line(error)}); check the network and HF_ENDPOINT"
        case 401 | 403:
            return "the Hub denies it; `hf auth login` or set HF_TOKEN, with the right to write there"
        case 409 | 412:
            return "somebody else published there at the same time"
        case status:
            return f"the Hub answers {status} ({one_line(error)})"
