"""What the tests share: artifacts that the real stages make, each once in a run and only when a test asks for it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.stage import ROOT, configuration, paths
from tests.parity import GOLDEN, LIVE, VARIANTS, Official

# Stage, and where `paths` says that it writes; in the order in which they need each other.
STAGES = {
    "download": "checkpoint",
    "build": "model",
    "export": "ir",
    "compress": "compressed",
    "bundle": "bundle",
    "smoke": "smoke",
}


def run_stage(stage: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m pipeline.<stage>` from the root of the checkout, as DVC does."""
    return subprocess.run(
        [sys.executable, "-m", f"pipeline.{stage}", *overrides],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`artifact("bundle", "tiny-base", "int8")`: the directory that a stage wrote, after running what is missing.

    The directories are shared by the whole run; a test that changes one copies it first.
    """
    root = tmp_path_factory.mktemp("artifacts")

    def get(stage: str, variant: str = "tiny-custom-voice", precision: str = "int8") -> Path:
        overrides = (f"variant={variant}", f"precision={precision}", f"artifacts={root}")
        where = paths(configuration(overrides))
        for name, attribute in STAGES.items():
            made: Path = getattr(where, attribute)
            if not made.exists():
                done = run_stage(name, *overrides)
                assert done.returncode == 0, f"{name} of {variant} {precision} failed:\n{done.stdout}{done.stderr}"
            if name == stage:
                return made
        raise ValueError(f"no stage {stage!r}")

    return get


@pytest.fixture(scope="session", params=VARIANTS)
def official(request: pytest.FixtureRequest, artifact: Callable[..., Path], tmp_path_factory) -> Official:
    """Each variant's checkpoint with what the official package computed with it."""
    scratch = tmp_path_factory.mktemp(request.param)
    if LIVE:
        return Official.load(LIVE / request.param / "checkpoint", LIVE / request.param / "golden.npz", scratch)
    return Official.load(artifact("download", request.param), GOLDEN / f"{request.param}.npz", scratch)
