"""Planning, sharing and building in groups, with toy stages; prove_fleet.py runs the real ones on a cluster."""

import io
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo
from rich.console import Console

from pipeline.fleet.build_group import Patience, build
from pipeline.fleet.plan import Group, Plan, read_lock
from pipeline.fleet.progress import Event, Progress, State
from pipeline.fleet.resources import fits, needs, wanted
from pipeline.stage import PipelineError, configuration
from tests.conftest import dvc, new_checkout

# As in dvc.yaml: one stage per variant, whose output differs from run to run, and cells that read one file of it.
AXES = {"variants": ["tiny-base", "tiny-custom-voice"], "precisions": ["int8", "int4"], "layouts": []}
VARIANT: dict[str, object] = {"variant": "${variants}"}
SHARED, CELL = "out/${item.variant}", "out/${item.variant}-${item.precision}"
STAGES = {
    "shared": {
        "matrix": VARIANT,
        "cmd": f"mkdir -p {SHARED} && cp source.txt {SHARED}/copy && date +%N > {SHARED}/time",
        "deps": ["source.txt"],
        "outs": [SHARED],
    },
    "cell": {
        "matrix": VARIANT | {"precision": "${precisions}"},
        "cmd": f"grep -q good ${{item.precision}}.txt || {{ echo 'error: a gate was missed' >&2; exit 1; }}; "
        f"cp {SHARED}/copy {CELL}",
        "deps": [f"{SHARED}/copy", "${item.precision}.txt"],
        "outs": [CELL],
    },
    "last": {
        "matrix": VARIANT | {"precision": "${precisions}"},
        "cmd": [f"cp {CELL} {CELL}-last", "true"],
        "deps": [CELL],
        "outs": [f"{CELL}-last"],
    },
}
BASE = ["shared@tiny-base", "cell@tiny-base-int8", "last@tiny-base-int8"]


def toy(folder: Path) -> None:
    """Writes that pipeline to a directory."""
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}, sort_keys=False))
    (folder / "params.yaml").write_text(yaml.safe_dump(AXES))
    (folder / "source.txt").write_text("source")
    for precision in ("int8", "int4"):
        (folder / f"{precision}.txt").write_text("good")


def project(folder: Path) -> Path:
    """A checkout of that pipeline, whose remote is a folder beside it."""
    folder.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    with Repo.init(str(folder)) as repo, repo.config.edit("local") as config:  # `dvc init` and `dvc remote add`
        config |= {"core": {"remote": "remote"}, "remote": {"remote": {"url": str(folder.parent / "remote")}}}
    toy(folder)
    return folder


def stale(folder: Path) -> list[str]:
    return Plan(folder).stale(BASE)


def make(folder: Path, *stages: str):
    return build(Plan(folder), stages, 1, lambda what: None)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """A checkout in which two groups are built, and beside it the remote that has them."""
    folder = project(tmp_path_factory.mktemp("fleet") / "first")
    for stages in (BASE[:1], BASE[1:]):
        assert make(folder, *stages).error is None
    return folder


@pytest.fixture
def another(shared, tmp_path) -> Path:
    """The same checkout on a machine that has built nothing."""
    shutil.copytree(shared.parent / "remote", tmp_path / "remote")
    return project(tmp_path / "another")


def test_groups_are_shared_stages_and_cells_each_after_its_inputs(shared):
    plan = Plan(shared)
    assert plan.select("tiny-base-int8") == BASE
    assert plan.select(["tiny-base", "*-int8"])[0] == BASE[0]
    groups = plan.groups(plan.select("tiny-base*"))
    assert groups["tiny-base-int8"] == Group("tiny-base-int8", tuple(BASE[1:]), frozenset({"tiny-base"}))
    assert plan.chosen(BASE[2]) == {"variant": "tiny-base", "precision": "int8"}
    assert groups.keys() == {"tiny-base", "tiny-base-int8", "tiny-base-int4"}
    apart = plan.groups(BASE, apart=["last"])
    assert apart["tiny-base-int8-last"] == Group("tiny-base-int8-last", (BASE[2],), frozenset({"tiny-base-int8"}))
    with pytest.raises(PipelineError, match="cells=x matches nothing; there are tiny-base, tiny-base-int4"):
        plan.select("x")


def test_what_one_machine_built_is_fresh_on_all_without_transfers(shared, another):
    assert stale(another) == []
    plan = Plan(another)
    plan.stale(BASE)
    assert plan.lock == read_lock(shared)
    kept = [path for path in (another / ".dvc/cache").rglob("*") if path.is_file()]
    assert {path.suffix for path in kept} == {".dir"}, "only listings of directories"
    assert plan.stale(plan.stages) == sorted(plan.stages.keys() - set(BASE), key=list(plan.stages).index)


@pytest.mark.parametrize(
    ("file", "expected"), [("source.txt", BASE), ("int8.txt", BASE[1:]), ("int4.txt", []), ("dvc.yaml", [BASE[2]])]
)
def test_an_edit_makes_its_dependents_stale_until_it_is_reverted(another, file, expected):
    original = (another / file).read_text()
    edited = original.replace("cp out/${item.variant}-", "cp -f out/${item.variant}-")
    (another / file).write_text(edited if edited != original else original + " too")
    assert stale(another) == expected
    (another / file).write_text(original)
    assert stale(another) == []


def test_a_group_is_built_from_pulled_inputs_and_its_listing_is_checked(shared, another):
    assert make(another, "cell@tiny-base-int4").seconds.keys() == {"cell@tiny-base-int4"}
    assert (another / "out/tiny-base/copy").exists()
    assert not (another / "out/tiny-base/time").exists(), "nothing unneeded is fetched"
    assert stale(another) == []


def test_a_group_that_another_machine_has_built_meanwhile_is_skipped(another):
    built = make(another, *BASE[1:])
    assert (built.seconds, built.error) == ({}, None)
    assert read_lock(another).keys() == set(BASE)
    assert not (another / "out").exists()


def test_a_missed_gate_is_one_line_and_earlier_outputs_are_kept(another):
    (another / "int8.txt").write_text("bad")
    (another / "source.txt").write_text("new")
    built = make(another, *BASE)
    assert built.error == "cell@tiny-base-int8: a gate was missed"
    assert built.seconds.keys() == read_lock(another).keys() == {"shared@tiny-base"}
    (another / "dvc.lock").unlink()
    assert stale(another) == BASE[1:]


def test_plain_dvc_reuses_what_a_group_built_and_a_group_what_plain_dvc_built(another):
    """In a clone that has only the remote."""
    said = dvc(another, "repro", "--pull", "--allow-missing", *BASE)
    assert said.count("is cached - skipping run") == 3
    assert "Running stage" not in said
    said = dvc(another, "repro", "cell@tiny-base-int4")
    assert said.count("Running stage") == 1
    dvc(another, "push", "--run-cache", "cell@tiny-base-int4")
    (another / "dvc.lock").unlink()
    shutil.rmtree(another / ".dvc/cache")
    assert Plan(another).stale(["cell@tiny-base-int4"]) == []


@pytest.mark.parametrize(("lost", "expected"), [(BASE[0], BASE), (BASE[1], BASE[1:])], ids=["a listing", "a file"])
def test_what_the_remote_lost_is_stale(another, lost, expected):
    """As if DVC's run cache was pushed without the outputs that it records."""
    plan = Plan(another)
    assert plan.stale(BASE) == []
    [out] = plan.lock[lost]["outs"]
    (another.parent / "remote/files/md5" / out["md5"][:2] / out["md5"][2:]).unlink()
    shutil.rmtree(another / ".dvc/cache", ignore_errors=True)
    assert stale(another) == expected


def test_two_builds_of_the_same_at_once_agree_on_one_afterwards(tmp_path):
    folders = [project(tmp_path / name) for name in ("first", "second")]
    for folder in folders:
        shutil.rmtree(tmp_path / "remote", ignore_errors=True)
        make(folder, BASE[0])
        shutil.copytree(tmp_path / "remote", tmp_path / f"remote-{folder.name}")
    for folder in folders:
        shutil.copytree(tmp_path / f"remote-{folder.name}", tmp_path / "remote", dirs_exist_ok=True)
        (folder / "dvc.lock").unlink()
    plans = [Plan(folder) for folder in folders]
    assert [plan.stale(BASE[:1]) for plan in plans] == [[], []]
    assert plans[0].lock == plans[1].lock


def test_a_damaged_entry_of_the_remote_is_ignored(another):
    for path in (another.parent / "remote/runs").rglob("*"):
        if path.is_file():
            path.write_text("cmd: [")
    assert stale(another) == BASE


def test_entries_of_dvc_lock_are_merged(tmp_path):
    folder = project(tmp_path / "first")
    Plan(folder, {"a": {"cmd": "1"}, "b": {"cmd": "1"}}).save()
    before = os.listdir(folder)
    Plan(folder, {"b": {"cmd": "2"}}).save()
    assert read_lock(folder) == {"a": {"cmd": "1"}, "b": {"cmd": "2"}}
    assert os.listdir(folder) == before
    assert not list(folder.glob(".*.part"))


def test_a_failing_remote_is_retried_and_given_up_in_one_line(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    answers, told = iter([OSError("no route\nto host"), OSError("no route"), "here"]), []

    def call():
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    insist = Patience(10, told.append)
    assert insist("pull", call) == "here"
    assert told == ["pull failed (no route to host); again in 1 s", "pull failed (no route); again in 2 s"]
    assert insist.retried == ["pull, 2 times in 0 s"]
    with pytest.raises(PipelineError, match="push failed 1 times, the last time with: division by zero"):
        Patience(0, told.append)("push", lambda: 1 / 0)


def test_secrets_of_a_remote_are_not_sent(tmp_path):
    folder = project(tmp_path / "first")
    dvc(folder, "remote", "add", "--local", "--default", "--force", "s3", "s3://bucket/path")
    for key, value in {
        "endpointurl": "http://127.0.0.1:1",
        "secret_access_key": "secret",
        "access_key_id": "id",
    }.items():
        dvc(folder, "remote", "modify", "--local", "s3", key, value)
    assert Plan(folder).settings["remote"] == {"s3": {"url": "s3://bucket/path", "endpointurl": "http://127.0.0.1:1"}}


def test_resources_grow_with_the_weights():
    def asks(variant: str, *devices: str, stage: str = "compress", **more: str) -> dict:
        group = Group("", (f"{stage}@x",), frozenset())
        return needs(group, {"variant": variant, "precision": "int8", **more}, 2, list(devices))

    memory = {size: asks(f"synthetic-{size}")["memory"] / 1e9 for size in ("0.6b-custom-voice", "1.7b-base")}
    assert 6.6 < memory["0.6b-custom-voice"] < 7.5
    assert 10.4 < memory["1.7b-base"] < 12, "calibrated int4 took 9.0 GB, and others may run beside it"
    assert asks("tiny-base")["memory"] < 1.5e9
    assert asks("0.6b-base")["disk"] < asks("1.7b-base")["disk"] < 20
    assert "intel_gpu" not in asks("tiny-base", "GPU")
    assert asks("tiny-base", "GPU", stage="smoke")["intel_gpu"] == 1


def test_smoke_is_sent_to_nodes_with_the_devices():
    device = configuration().device
    gpu, both = {"CPU": 8.0, "intel_gpu": 1.0}, {"intel_gpu": 1.0, "intel_npu": 1.0}
    assert wanted(device, [{"CPU": 8.0}]) == []
    assert wanted(device, [{"CPU": 8.0}, gpu]) == ["GPU"]
    assert wanted(device, [gpu, {"intel_npu": 1.0}]) == ["GPU"], "no node has both"
    assert wanted(device, [gpu, both]) == ["GPU", "NPU"]
    assert wanted(configuration(["device.required=[CPU,NPU]"]).device, [gpu]) == ["NPU"]
    asked = {"CPU": 2, "memory": 10, "disk": 1.0, "intel_gpu": 1.0}
    node = {"CPU": 2.0, "memory": 10.0, "disk": 1.0, "intel_gpu": 1.0}
    assert fits(asked, node)
    assert not any(fits(asked, {name: node[name] for name in node if name != missing}) for missing in node)


def test_a_group_that_starts_again_is_reported_as_lost():
    progress = Progress(Console(file=io.StringIO()))
    for event in (
        Event("a", State.WAITING, "waits"),
        Event("a", State.STARTED, "starts", "one"),
        Event("b", State.STARTED, "starts", "one"),
        Event("a", State.STARTED, "starts", "two"),
    ):
        progress.show(event)
    assert progress.retried == ["a: lost with one, started again on two"]
    shown = io.StringIO()
    progress.show(Event("b", State.OVER, "done in 3 s"))
    Console(file=shown, width=100).print(progress.table())
    assert "1 of 2 groups" in shown.getvalue()
    assert re.search(r"a\s.*two\s.*starts", shown.getvalue())


def test_a_cluster_without_a_remote_is_refused(tmp_path):
    checkout = new_checkout(tmp_path / "checkout")
    command = [sys.executable, "-m", "pipeline.fleet", "address=127.0.0.1:1"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no DVC remote for the cluster to meet in" in done.stderr


@pytest.mark.prove
def test_a_local_fleet_builds_what_it_can_and_resumes_where_it_was(tmp_path):
    """One cell misses its gate: the others are built; once it is fixed, only that cell is built."""
    checkout = new_checkout(tmp_path / "checkout")
    toy(checkout)
    (checkout / "int4.txt").write_text("bad")

    def fleet(cells: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "pipeline.fleet", f"cells={cells}", "fleet.cpus=1"]
        return subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=300, check=False)

    failed = fleet("tiny-base-*")
    assert failed.returncode == 1
    assert failed.stderr == "error: tiny-base-int4: cell@tiny-base-int4: a gate was missed\n"
    assert (checkout / "out/tiny-base-int8-last").read_text() == "source"
    (checkout / "int4.txt").write_text("good")
    mended = fleet("tiny-base-*")
    assert mended.returncode == 0, mended.stderr
    assert "5 stages, 2 ran" in mended.stdout
    assert (checkout / "out/tiny-base-int4-last").exists()
    assert "didn't change" in dvc(checkout, "repro", "last@tiny-base-int4")
