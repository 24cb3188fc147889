"""The workflows call what a person calls, and name what there is; with `actionlint` on the path it checks them too."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.stage import ROOT
from qwen3_tts_ov.bundle import verified

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CELL = ("VARIANT=tiny-custom-voice", "PRECISION=int8")


def steps() -> list[dict]:
    jobs = [job for path in WORKFLOWS for job in yaml.safe_load(path.read_text())["jobs"].values()]
    return [step for job in jobs for step in job.get("steps", [])]


def make(folder: Path, *arguments: str) -> str:
    """What `make` prints in a checkout, with this environment in the place of one that it would set up."""
    if not (folder / ".venv").exists():
        (folder / ".venv").symlink_to(sys.prefix)
    done = subprocess.run(
        ["make", "--assume-old=.venv/.installed", *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_step_is_a_command_that_a_person_types():
    commands = [step["run"] for step in steps() if "run" in step]
    assert len(commands) >= 5
    for command in commands:
        if command != ".ci/run":
            targets = re.match(r"make ((?:[a-z]+ ?)+)", command)
            assert targets, command
            subprocess.run(["make", "-n", *targets[1].split()], cwd=ROOT, check=True, capture_output=True)


def test_the_matrix_names_what_conf_has():
    jobs = yaml.safe_load((ROOT / ".github/workflows/cells.yml").read_text())["jobs"]
    for job in ("build", "publish"):
        for axis in ("variant", "precision"):
            for name in jobs[job]["strategy"]["matrix"][axis]:
                assert (ROOT / "conf" / axis / f"{name}.yaml").is_file(), name


def test_actionlint_finds_nothing():
    if not shutil.which("actionlint"):
        pytest.skip("actionlint is not installed")
    subprocess.run(["actionlint"], cwd=ROOT, check=True)


def test_a_cell_is_built_once_and_published_by_another_machine_from_the_remote(artifact, tmp_path):
    """The commands of nightly, in two clones; the first builds, byte for byte, what the tests' checkout built."""
    expected = artifact("bundle")
    origin, cell = expected.parents[3], expected.relative_to(expected.parents[3])
    machines = tmp_path / "builder", tmp_path / "publisher"
    for machine in machines:
        subprocess.run(["git", "clone", "-q", str(origin), str(machine)], check=True)
    remote = f"REMOTE={tmp_path / 'remote'}"

    make(machines[0], "only", "cell", *CELL, remote)
    sums = (machines[0] / cell / "SHA256SUMS").read_text()
    assert sums == (expected / "SHA256SUMS").read_text(), "two clones, the same bundle"

    said = make(machines[1], "only", "cell", *CELL, remote)
    assert "Running stage" not in said, "everything came from the remote"
    assert (machines[1] / cell / "SHA256SUMS").read_text() == sums
    assert "| tiny-custom-voice | int8 |" in make(machines[1], "summary")
    said = make(machines[1], "publish", *CELL, "TO=publish.path=out publish.branch=nightly publish.tag=")
    assert "published" in said
    verified(machines[1] / "out" / "tiny-custom-voice-int8-ov" / "nightly")
