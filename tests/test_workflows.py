"""The workflows run commands that a person types, and name existing cells; `actionlint`, if installed, checks them."""

import re
import shutil
import subprocess

import pytest
import yaml

from pipeline.stage import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps() -> list[dict]:
    jobs = [job for path in WORKFLOWS for job in yaml.safe_load(path.read_text())["jobs"].values()]
    return [step for job in jobs for step in job.get("steps", [])]


def test_every_step_is_a_command_that_a_person_types():
    commands = [step["run"] for step in steps() if "run" in step]
    assert len(commands) >= 5
    for command in commands:
        if command != ".ci/run":
            targets = re.match(r"make ((?:[a-z]+ ?)+)", command)
            assert targets, command
            subprocess.run(["make", "-n", *targets[1].split()], cwd=ROOT, check=True, capture_output=True)


def test_the_cells_are_those_that_conf_has():
    env = yaml.safe_load((ROOT / ".github/workflows/cells.yml").read_text())["env"]
    for group, axis in ("variant", "VARIANTS"), ("precision", "PRECISIONS"):
        for name in env[axis].split():
            assert (ROOT / "conf" / group / f"{name}.yaml").is_file(), name


def test_actionlint_finds_nothing():
    if not shutil.which("actionlint"):
        pytest.skip("actionlint is not installed")
    subprocess.run(["actionlint"], cwd=ROOT, check=True)
