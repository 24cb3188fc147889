"""Every real stage, killed while writing: no partial output is left as complete, and a rerun gives the same bytes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.stage import fingerprint, list_files, paths_of
from qwen3_tts_ov import Bundle
from tests.conftest import STAGES, run_stage

# They contain the commit of the checkout that ran the stage.
DIFFERENT = ("manifest.json", "SHA256SUMS", "provenance.intoto.json")
QUICK = ("bundle",)  # `make prove` kills the others, and test_download.py a download
CELL = ("variant=tiny-custom-voice", "precision=int8")


def wait_for_files(process: subprocess.Popen, target: Path) -> None:
    """Returns when the stage has started to write."""
    while process.poll() is None:
        if any(path.is_file() for path in target.parent.glob(f".{target.name}.*.new/**/*")):
            return
        time.sleep(0.002)
    raise AssertionError(f"the stage ended (exit code {process.returncode}) before it was seen writing")


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=[] if stage in QUICK else pytest.mark.prove) for stage in STAGES]
)
def test_a_stage_killed_while_it_writes_leaves_nothing_and_runs_again(artifact, checkout_of_all, tmp_path, stage):
    artifact(stage)
    root = artifact("download").parents[1]
    where = paths_of(tmp_path, "tiny-custom-voice", "int8")
    target: Path = getattr(where, STAGES[stage])
    for earlier in list(STAGES)[: list(STAGES).index(stage)]:
        made: Path = getattr(where, STAGES[earlier])
        shutil.copytree(root / made.relative_to(tmp_path), made, copy_function=os.link)

    command = [sys.executable, "-m", f"pipeline.{stage}", *CELL, f"artifacts={tmp_path}"]
    process = subprocess.Popen(
        command,
        cwd=checkout_of_all,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_files(process, target)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()

    # A worker of the killed stage may still run for a moment; it must not interfere.
    done = run_stage(stage, *CELL, f"artifacts={tmp_path}", checkout=checkout_of_all)
    assert done.returncode == 0, done.stderr
    assert not list(target.parent.glob(f".{target.name}.*"))
    expected = artifact(stage)
    assert list_files(target) == list_files(expected)
    for name in list_files(target):
        if name not in DIFFERENT:
            assert fingerprint(target / name) == fingerprint(expected / name), name
    if stage == "bundle":
        assert Bundle.load(target).manifest["bundle_id"] == Bundle.load(expected).manifest["bundle_id"]
