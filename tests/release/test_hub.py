"""Releases over the Hub's own protocol, by LFS and by Xet, with every request broken in turn.

Whatever fails, the Hub always has the old release or the whole new one, and other people's files are kept.
"""

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from huggingface_hub import constants

from pipeline.release import hub as target
from pipeline.release.attestations import read_checksums, write_checksums
from pipeline.release.hub import Place
from pipeline.stage import PipelineError
from qwen3_tts_ov import Bundle, BundleError
from qwen3_tts_ov.bundle import verified
from qwen3_tts_ov.manifest import bundle_id
from tests.doubles.bundle import make_bundle
from tests.doubles.hub import TOKEN, Hub, serving, use

REPOSITORY = "acme/tiny-int8-ov"
OLD, NEW = Place(REPOSITORY, True, "main", "v0.1.0"), Place(REPOSITORY, True, "main", "v0.2.0")


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The seconds that a release would have waited; the tests do not wait."""
    asked: list[float] = []
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: (asked.append(seconds), sleep(0))[1])
    return asked


@pytest.fixture(params=["lfs", "xet"])
def hub(request, tmp_path, monkeypatch, waits) -> Iterator[Hub]:
    """A Hub on loopback, and the client's settings for it."""
    with serving(Hub(cas=tmp_path / "cas" if request.param == "xet" else None)) as hub:
        use(hub, tmp_path, monkeypatch)
        yield hub


def make_release(folder: Path, content: bytes, *extra: str) -> Bundle:
    """A small bundle with attestations, and `extra` files of its own."""
    make_bundle(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("talker.bin", *extra):
        (folder / name).write_bytes(content)
        manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"bundle_id": bundle_id(manifest)}))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    write_checksums(folder)
    (folder / "Thumbs.db").write_bytes(b"foreign")  # never published
    return verified(folder)


@pytest.fixture
def old(tmp_path) -> Bundle:
    return make_release(tmp_path / "old", b"old weights", "retired.bin")


@pytest.fixture
def new(tmp_path) -> Bundle:
    return make_release(tmp_path / "new", b"new weights")


def held(hub: Hub, revision: str) -> str | None:
    """The bundle id at a revision, after checking every file against SHA256SUMS; None if there is no release."""
    repo = hub.repositories[REPOSITORY]
    files = repo.commits[repo.resolve(revision) or ""]
    if "manifest.json" not in files:
        return None
    sums = hub.content(REPOSITORY, revision, "SHA256SUMS").decode()
    for line in sums.splitlines():
        digest, name = line.split("  ")
        assert files[name].sha256 == digest, f"{revision} holds another {name}"
    manifest = json.loads(hub.content(REPOSITORY, revision, "manifest.json"))
    assert set(manifest["files"]) <= set(read_checksums(sums))
    assert "retired.bin" in manifest["files"] or "retired.bin" not in files
    return manifest["bundle_id"]


def check_history(hub: Hub) -> None:
    """Asserts that every commit ever made has no release or a whole one."""
    for commit in hub.repositories[REPOSITORY].commits:
        held(hub, commit)


def id_of(release: Bundle) -> str:
    return release.manifest["bundle_id"]


@pytest.fixture
def before(hub, old):
    """A Hub with the old release and someone else's note."""
    target.publish(OLD, old, dry_run=False)
    hub.add(REPOSITORY, "NOTE.md", b"by hand")
    return hub.state()


def start_over(hub: Hub, state: tuple) -> None:
    """Restores the Hub, and clears what the client has cached of it."""
    hub.restore(state)
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)


def requests_of(hub: Hub, state: tuple, release: Bundle) -> int:
    """The number of requests of an undisturbed release."""
    start_over(hub, state)
    target.publish(NEW, release, dry_run=False)
    return len(hub.requests)


def once(wanted: int, fault: str | int) -> Callable[[int, str], str | int | None]:
    return lambda number, path: fault if number == wanted else None


def from_then_on(wanted: int, fault: str | int) -> Callable[[int, str], str | int | None]:
    return lambda number, path: fault if number >= wanted else None


@pytest.mark.parametrize("fault", ["drop", "lost", "cut", 429, 500])
def test_a_failure_of_any_request_is_survived(hub, before, old, new, fault, record_property):
    requests = requests_of(hub, before, new)
    for number in range(1, requests + 1):
        start_over(hub, before)
        hub.fault = once(number, fault)
        target.publish(NEW, new, dry_run=False)
        broken = hub.requests[number - 1]
        assert held(hub, "main") == held(hub, "v0.2.0") == id_of(new), broken
        assert held(hub, "v0.1.0") == id_of(old), broken
        assert hub.content(REPOSITORY, "main", "NOTE.md") == b"by hand"
        assert len(hub.repositories[REPOSITORY].commits) == 4, f"{broken}: first, old, note, new"
    record_property("faults overcome", requests)


@pytest.mark.parametrize("fault", ["drop", "lost", 503])
def test_a_permanent_failure_leaves_one_whole_release_and_the_next_run_completes_it(
    hub, before, old, new, fault, record_property
):
    requests = requests_of(hub, before, new)
    for number in range(1, requests + 1):
        start_over(hub, before)
        hub.fault = from_then_on(number, fault)
        with pytest.raises(PipelineError, match=r"acme/tiny-int8-ov@v0\.2\.0: the Hub"):
            target.publish(NEW, new, dry_run=False)
        broken = hub.requests[number - 1]
        assert held(hub, "main") in (id_of(old), id_of(new)), broken
        assert held(hub, "v0.1.0") == id_of(old)
        check_history(hub)
        hub.calm()
        target.publish(NEW, new, dry_run=False)
        assert held(hub, "main") == held(hub, "v0.2.0") == id_of(new), broken
    record_property("lasting faults survived", requests)


def test_the_first_release_survives_failures_too(hub, new, record_property):
    requests = requests_of(hub, ({}, {}), new)
    for fault in ("drop", "lost", 500):
        for number in range(1, requests + 1):
            start_over(hub, ({}, {}))
            hub.fault = once(number, fault)
            target.publish(NEW, new, dry_run=False)
            assert held(hub, "main") == held(hub, "v0.2.0") == id_of(new), hub.requests[number - 1]
    record_property("faults overcome", 3 * requests)


def test_waits_grow_and_respect_the_hubs_retry_after(hub, old, waits, capsys):
    hub.fault = from_then_on(1, 500)
    with pytest.raises(PipelineError, match="the Hub answers 500"):
        target.publish(OLD, old, dry_run=False)
    assert waits == sorted(waits)
    assert len(waits) == target.ATTEMPTS - 1
    assert waits[-1] >= 8 * waits[0]
    assert TOKEN not in capsys.readouterr().err
    waits.clear()
    hub.fault = once(len(hub.requests) + 1, 429)
    target.publish(OLD, old, dry_run=False)
    assert waits == [7.0]


def test_a_release_is_one_commit_and_a_tag_and_can_be_pulled(hub, old, new, tmp_path):
    said = target.publish(OLD, old, dry_run=False)
    repo = hub.repositories[REPOSITORY]
    assert repo.private
    assert repo.tags == {"v0.1.0": repo.branches["main"]}
    assert repo.branches["main"][:12] in said
    pulled = Bundle.load(f"{REPOSITORY}@v0.1.0")
    assert pulled.manifest == old.manifest
    assert pulled.path("talker.bin").read_bytes() == b"old weights"

    target.publish(NEW, new, dry_run=False)
    assert Bundle.load(REPOSITORY).manifest == new.manifest
    assert Bundle.load(REPOSITORY, revision="v0.1.0").manifest == old.manifest


def test_the_same_bundle_again_changes_nothing(hub, old):
    target.publish(OLD, old, dry_run=False)
    before = hub.state()
    (old.folder / "README.md").write_text("a card with different speeds")
    assert "published already" in target.publish(OLD, old, dry_run=False)
    assert "published already" in target.publish(Place(REPOSITORY, True, "main", None), old, dry_run=False)
    assert hub.state() == before


def test_a_tag_never_moves(hub, old, new):
    target.publish(OLD, old, dry_run=False)
    with pytest.raises(PipelineError, match=r"holds another bundle .*publish\.tag"):
        target.publish(OLD, new, dry_run=False)
    assert held(hub, "main") == held(hub, "v0.1.0") == id_of(old)


def test_a_branch_moves_and_main_does_not(hub, old, new):
    target.publish(OLD, old, dry_run=False)
    nightly = Place(REPOSITORY, True, "nightly", None)
    assert "published already" not in target.publish(nightly, new, dry_run=False)
    assert "published already" in target.publish(nightly, new, dry_run=False)
    assert held(hub, "nightly") == id_of(new)
    assert held(hub, "main") == id_of(old)
    assert Bundle.load(f"{REPOSITORY}@nightly").manifest == new.manifest


def test_only_files_of_the_previous_release_are_deleted(hub, before, new):
    hub.add(REPOSITORY, "extra.bin.txt", b"mine")
    target.publish(NEW, new, dry_run=False)
    repo = hub.repositories[REPOSITORY]
    files = set(repo.commits[repo.branches["main"]])
    assert {"NOTE.md", "extra.bin.txt", ".gitattributes", "talker.bin"} <= files
    assert "retired.bin" not in files
    assert "retired.bin" in repo.commits[repo.tags["v0.1.0"]]


def test_a_file_that_someone_deleted_or_changed_is_restored(hub, old):
    target.publish(OLD, old, dry_run=False)
    hub.add(REPOSITORY, "config.json", b"{ }")
    assert "published already" not in target.publish(Place(REPOSITORY, True, "main", "v0.1.1"), old, dry_run=False)
    assert held(hub, "main") == held(hub, "v0.1.1") == id_of(old)


def test_a_dry_run_lists_every_step_and_does_none(hub, old, new):
    said = target.publish(Place(REPOSITORY, False, "nightly", "v0.1.0"), old, dry_run=True)
    assert not hub.repositories
    for step in (
        "create the public repository",
        "create the branch nightly",
        "commit 18 files, 0.0 MB, on the first commit",
        "tag it v0.1.0",
    ):
        assert step in said
    target.publish(OLD, old, dry_run=False)
    before = hub.state()
    said = target.publish(NEW, new, dry_run=True)
    assert "delete retired.bin" in said
    assert "create" not in said
    assert hub.state() == before


@pytest.mark.parametrize("commits", [1, 3])
def test_commits_made_in_between_are_built_upon(hub, before, new, commits):
    hub.restore(before)
    hub.before_commit += [lambda n=n: hub.add(REPOSITORY, f"NOTE-{n}.md", b"mine") for n in range(commits)]
    target.publish(NEW, new, dry_run=False)
    assert held(hub, "main") == held(hub, "v0.2.0") == id_of(new)
    files = hub.repositories[REPOSITORY].commits[hub.repositories[REPOSITORY].branches["main"]]
    assert {"NOTE.md", *(f"NOTE-{n}.md" for n in range(commits))} <= set(files)


def test_a_repository_with_constant_commits_is_left_alone(hub, before, old, new):
    hub.restore(before)
    hub.before_commit += [lambda n=n: hub.add(REPOSITORY, f"{n}.md", b"mine") for n in range(99)]
    with pytest.raises(PipelineError, match="someone else published there at the same time"):
        target.publish(NEW, new, dry_run=False)
    assert held(hub, "main") == id_of(old)
    assert "v0.2.0" not in hub.repositories[REPOSITORY].tags


def test_two_concurrent_releases_leave_one_whole_release_and_one_tag(hub, before, old, new, tmp_path):
    other = make_release(tmp_path / "other", b"other weights")
    hub.restore(before)
    errors: list[PipelineError] = []

    def run(release: Bundle) -> None:
        try:
            target.publish(NEW, release, dry_run=False)
        except PipelineError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[release]) for release in (new, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held(hub, "v0.2.0") in (id_of(new), id_of(other))
    assert held(hub, "main") in (id_of(new), id_of(other))
    assert all("choose a new publish.tag" in str(error) for error in errors)
    check_history(hub)


def test_a_download_cut_short_anywhere_is_completed_or_named(hub, old, tmp_path, monkeypatch, record_property):
    target.publish(OLD, old, dry_run=False)
    hub.calm()
    Bundle.load(REPOSITORY, revision="v0.1.0")
    requests = len(hub.requests)
    for number in range(1, requests + 1):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / f"cache-{number}"))
        hub.calm()
        hub.fault = once(number, "cut")
        with suppress(BundleError):
            assert Bundle.load(REPOSITORY, revision="v0.1.0").manifest == old.manifest
        found = Bundle.load(REPOSITORY, revision="v0.1.0")
        assert found.manifest == old.manifest
        shutil.rmtree(tmp_path / f"cache-{number}")
    record_property("downloads cut short", requests)


@pytest.mark.parametrize("name", ["talker.bin", "talker.xml", "config.json"])
def test_pull_names_a_file_that_changed_on_the_hub(hub, old, name):
    target.publish(OLD, old, dry_run=False)
    repo = hub.repositories[REPOSITORY]
    files = repo.commits[repo.branches["main"]]
    content = hub.objects.get(files[name].sha256, b"old weights")
    files[name] = hub.small(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(BundleError, match=rf"{name} has changed"):
        Bundle.load(REPOSITORY)


def test_a_wrong_token_and_an_invalid_name_give_one_line_without_the_token(hub, old, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_somebody_elses")
    with pytest.raises(PipelineError, match="the Hub denies access") as denied:
        target.publish(OLD, old, dry_run=False)
    assert "hf_somebody_elses" not in str(denied.value)
    with pytest.raises(PipelineError, match="not the name of a Hub repository"):
        target.publish(Place("acme/bad..name", True, "main", None), old, dry_run=False)
