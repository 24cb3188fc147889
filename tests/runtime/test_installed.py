"""What a user installs: a small wheel without torch that imports quickly and speaks.

Installing takes minutes and network access, so this runs only on request: INSTALL=1.
"""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from pipeline.stage import ROOT

pytestmark = pytest.mark.skipif(not os.environ.get("INSTALL"), reason="installs from the registry; set INSTALL=1")


def run(*command: object, **how: object) -> str:
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # only what is installed
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=alone, **how)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):  # a copy: building leaves files behind
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "qwen3_tts_ov", source / "qwen3_tts_ov")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ of a new virtual environment with the wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    run(folder / "bin/python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    return folder / "bin"


def test_the_wheel_is_under_200_kb_and_holds_the_servers_page(wheel):
    assert wheel.stat().st_size < 200_000
    assert "qwen3_tts_ov/app/page/index.html" in ZipFile(wheel).namelist()


TOOLS = {
    "pipx": ["pipx", "install", f"--pip-args=--constraint {ROOT / 'constraints.txt'}"],
    "uv": ["uv", "tool", "install", "--constraints", ROOT / "constraints.txt"],
}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_installs_the_program_and_the_service_finds_it(tool, wheel, artifact, tmp_path, monkeypatch):
    if shutil.which(tool) is None:
        pytest.skip(f"this machine has no {tool}")
    for name in ("HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    run(*TOOLS[tool], wheel)
    bundle = artifact("bundle", "tiny-custom-voice", "int8")
    run(tmp_path / ".local/bin/qwen3-tts-ov", "say", bundle, "Hello.", "--max-frames", 2, cwd=tmp_path)
    assert (tmp_path / "speech.wav").stat().st_size == 44 + 2 * 1920 * 2
    if shutil.which("systemd-analyze"):
        unit = ROOT / "docs" / "qwen3-tts-ov.service"
        found = subprocess.run(["systemd-analyze", "--user", "verify", unit], capture_output=True, text=True)
        assert (found.returncode, found.stderr) == (0, "")


def test_torch_is_not_installed(programs):
    installed = {line.partition("==")[0].lower() for line in run(programs / "pip", "freeze").splitlines()}
    assert "openvino" in installed
    assert not installed & {"torch", "transformers", "nncf", "hydra-core", "dvc"}


def test_the_import_takes_under_a_second(programs, tmp_path):
    script = "import time; start = time.perf_counter(); import qwen3_tts_ov; print(time.perf_counter() - start)"
    assert float(run(programs / "python", "-c", script, cwd=tmp_path)) < 1


def test_the_server_is_an_extra_and_says_so(programs, artifact):
    bundle = artifact("bundle", "tiny-custom-voice", "int8")
    done = subprocess.run([programs / "qwen3-tts-ov", "serve", bundle], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: starlette is missing; pip install 'qwen3-tts-ov[serve]'\n")


def test_it_speaks(programs, artifact, tmp_path):
    bundle = artifact("bundle", "tiny-custom-voice", "int8")
    run(programs / "qwen3-tts-ov", "say", bundle, "Hello.", "--max-frames", 2, cwd=tmp_path)
    assert (tmp_path / "speech.wav").stat().st_size == 44 + 2 * 1920 * 2
