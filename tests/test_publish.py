"""publish: only a verified, smoked bundle of committed code leaves, whole, once; what it did not write stays."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi

from pipeline import publish
from pipeline.stage import ROOT, PipelineError, configuration, paths, write_json
from qwen3_tts_ov import Bundle, BundleError
from qwen3_tts_ov.bundle import bundle_id
from tests.conftest import run_stage

CELL = ("variant=tiny-custom-voice", "precision=int8")
DOUBLE = ROOT.parent / "shared" / "hub" / "double.py"


@pytest.fixture
def released(artifact, tmp_path):
    """A root with a bundle and its smoke report, as if made from committed code."""
    for stage in ("smoke", "bundle"):
        source = artifact(stage)
        shutil.copytree(source, tmp_path / "artifacts" / source.relative_to(source.parents[2]))
    where = paths(configuration([*CELL, f"artifacts={tmp_path}/artifacts"]))
    edit(where.bundle / "manifest.json", ("provenance", "git"), {"commit": "0" * 40, "dirty": False})
    return where


def edit(path: Path, keys: tuple[str, ...], value: object) -> None:
    data = json.loads(path.read_text())
    inner = data
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    write_json(path, data)


def overrides(where, *more: str) -> list[str]:
    root = where.checkpoint.parents[1]
    return [*CELL, f"artifacts={root}", f"publish.path={root.parent}/releases", *more]


def target(where) -> Path:
    return where.checkpoint.parents[2] / "releases" / "tiny-custom-voice-int8-ov" / "v0.1.0"


def test_a_folder_release_is_the_bundle_byte_for_byte(released):
    publish.run(configuration(overrides(released)))
    manifest = Bundle.load(target(released)).manifest
    assert manifest == Bundle.load(released.bundle).manifest
    for file in released.bundle.rglob("*"):
        if file.is_file():
            assert (target(released) / file.relative_to(released.bundle)).read_bytes() == file.read_bytes()


def test_the_same_bundle_again_changes_nothing(released, capsys):
    publish.run(configuration(overrides(released)))
    before = target(released).stat().st_ino
    publish.run(configuration(overrides(released)))
    assert "published already" in capsys.readouterr().out
    assert target(released).stat().st_ino == before


def test_a_tag_never_moves_to_another_bundle(released):
    publish.run(configuration(overrides(released)))
    edit(target(released) / "manifest.json", ("bundle_id",), "f" * 64)
    with pytest.raises(PipelineError, match=r"another bundle.*publish\.tag"):
        publish.run(configuration(overrides(released)))


def test_a_dry_run_says_what_it_would_do_and_does_nothing(released, capsys):
    publish.run(configuration(overrides(released, "publish.dry_run=true")))
    assert "would copy" in capsys.readouterr().out
    assert not target(released).parent.exists()


def flip(where, name: str) -> None:
    data = bytearray((where.bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (where.bundle / name).unlink()
    (where.bundle / name).write_bytes(data)


@pytest.mark.parametrize("name", ["talker.bin", "talker.xml", "config.json", "tokenizer.json"])
def test_a_bundle_with_a_changed_file_is_refused(released, name):
    flip(released, name)
    with pytest.raises(BundleError, match=name):
        publish.run(configuration(overrides(released)))
    assert not target(released).exists()


@pytest.mark.parametrize("git", [{"commit": "0" * 40, "dirty": True}, {"commit": None, "dirty": True}])
def test_a_bundle_of_uncommitted_code_is_refused(released, git):
    edit(released.bundle / "manifest.json", ("provenance", "git"), git)
    with pytest.raises(PipelineError, match="uncommitted"):
        publish.run(configuration(overrides(released)))


def test_a_bundle_that_smoke_has_not_heard_is_refused(released):
    edit(released.smoke / "report.json", ("bundle_id",), "f" * 64)
    with pytest.raises(PipelineError, match="another bundle"):
        publish.run(configuration(overrides(released)))
    shutil.rmtree(released.smoke)
    with pytest.raises(PipelineError, match="smoke is missing"):
        publish.run(configuration(overrides(released)))


def test_an_unknown_target_lists_the_known_ones(released):
    with pytest.raises(PipelineError, match="known: folder, hub"):
        publish.run(configuration(overrides(released, "publish.target=moon")))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The address of a Hub double on loopback; the stage's own client talks to it over HTTP."""
    if not DOUBLE.exists():
        pytest.skip("there is no Hub double beside this checkout (../shared/hub/double.py)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, str(DOUBLE), str(port), str(tmp_path / "hub")], stdout=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    for key, value in {
        "HF_ENDPOINT": address,
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # read at import; the double has no Xet
    (tmp_path / "home").mkdir()
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    try:
        yield HfApi(endpoint=address, token="hf_test")
    finally:
        server.terminate()
        server.wait()


REPOSITORY = "acme/tiny-custom-voice-int8-ov"


def release(where, *more: str) -> subprocess.CompletedProcess[str]:
    root = where.checkpoint.parents[1]
    return run_stage("publish", *CELL, f"artifacts={root}", "publish=hub", "publish.owner=acme", *more)


def hub_files(api: HfApi, revision: str = "main") -> set[str]:
    return set(api.list_repo_files(REPOSITORY, revision=revision))


def test_a_hub_release_is_one_commit_and_a_tag_and_pulls_back(released, hub, tmp_path):
    done = release(released)
    assert done.returncode == 0, done.stderr
    refs = hub.list_repo_refs(REPOSITORY)
    assert [tag.name for tag in refs.tags] == ["v0.1.0"]
    assert refs.tags[0].target_commit == refs.branches[0].target_commit
    folder = hub.snapshot_download(REPOSITORY, revision="v0.1.0", local_dir=tmp_path / "pulled")
    assert Bundle.load(folder).manifest == Bundle.load(released.bundle).manifest

    again = release(released)
    assert "published already" in again.stdout
    assert hub.list_repo_refs(REPOSITORY).branches[0].target_commit == refs.branches[0].target_commit


def test_a_hub_dry_run_creates_nothing(released, hub):
    done = release(released, "publish.dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "would create the private repository" in done.stdout
    assert not hub.repo_exists(REPOSITORY)


def test_a_release_that_died_before_its_tag_is_completed(released, hub):
    assert release(released).returncode == 0
    commit = hub.list_repo_refs(REPOSITORY).branches[0].target_commit
    hub.delete_tag(REPOSITORY, tag="v0.1.0")
    done = release(released)
    assert done.returncode == 0, done.stderr
    refs = hub.list_repo_refs(REPOSITORY)
    assert refs.tags[0].target_commit == refs.branches[0].target_commit == commit


def test_a_new_release_deletes_the_old_ones_files_and_no_other(released, hub):
    assert release(released).returncode == 0
    stranger = Path(os.environ["HF_HOME"]) / "README.md"
    stranger.write_text("by hand")
    hub.upload_file(path_or_fileobj=str(stranger), path_in_repo="README.md", repo_id=REPOSITORY)

    manifest = json.loads((released.bundle / "manifest.json").read_text())
    manifest["files"]["talker-2.bin"] = manifest["files"].pop("talker.bin")
    manifest["components"]["talker"]["bin"] = "talker-2.bin"
    manifest["bundle_id"] = bundle_id(manifest)
    (released.bundle / "talker.bin").rename(released.bundle / "talker-2.bin")
    write_json(released.bundle / "manifest.json", manifest)
    edit(released.smoke / "report.json", ("bundle_id",), manifest["bundle_id"])

    assert release(released).returncode == 1, "the tag is taken"
    done = release(released, "publish.tag=v0.2.0")
    assert done.returncode == 0, done.stderr
    assert {"README.md", "talker-2.bin"} <= hub_files(hub)
    assert "talker.bin" not in hub_files(hub)
    assert "talker.bin" in hub_files(hub, "v0.1.0")


def test_a_commit_that_came_in_between_is_built_upon(released, hub, monkeypatch):
    hub.create_repo(REPOSITORY)
    create_commit, calls = hub.create_commit, []

    def overtaken(repository, operations, **keywords):
        if not calls:
            note = Path(os.environ["HF_HOME"]) / "NOTE.md"
            note.write_text("first")
            hub_again = HfApi(endpoint=hub.endpoint, token="hf_test")
            hub_again.upload_file(path_or_fileobj=str(note), path_in_repo="NOTE.md", repo_id=repository)
        calls.append(keywords["parent_commit"])
        return create_commit(repository, operations, **keywords)

    monkeypatch.setattr(hub, "create_commit", overtaken)
    publish.commit(hub, REPOSITORY, Bundle.load(released.bundle))
    assert len(set(calls)) == 2
    assert {"NOTE.md", "manifest.json"} <= hub_files(hub)


def test_no_network_and_a_wrong_token_are_one_line(released, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    done = release(released)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert "hf_wrong" not in done.stdout + done.stderr
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = release(released)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
