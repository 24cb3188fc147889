"""DVC runs the stages: one cell end to end in a fresh clone, nothing the second time, one column after an edit."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.stage import ROOT
from qwen3_tts_ov.bundle import Bundle

CELL = "tiny-custom-voice-int8"
DVC_YAML = yaml.safe_load((ROOT / "dvc.yaml").read_text())
AXES = yaml.safe_load((ROOT / "params.yaml").read_text())


def dvc(checkout: Path, *arguments: str) -> str:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=checkout,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"dvc {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A repository of its own with the files of this one, and one cell built."""
    checkout = tmp_path_factory.mktemp("clone") / "repository"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and Path(name).name != "dvc.lock":
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, checkout / name)
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "--all"], [*identity, "commit", "-qm", "Copy"]):
        subprocess.run(["git", *command], cwd=checkout, check=True)
    dvc(checkout, "repro", f"smoke@{CELL}")
    return checkout


def stale(checkout: Path) -> set[str]:
    """The stages of the built cell of which an input has changed."""
    found = json.loads(dvc(checkout, "status", "--json", "--with-deps", f"smoke@{CELL}"))
    return {name.partition("@")[0] for name in found}


def test_one_cell_is_built_to_a_clean_bundle_that_speaks(checkout):
    cell = checkout / "artifacts" / "tiny-custom-voice" / "int8"
    bundle = Bundle.load(cell / "bundle")
    assert not bundle.manifest["provenance"]["git"]["dirty"]
    assert (cell / "smoke" / "cpu.wav").stat().st_size > 1000


def test_a_second_run_runs_nothing_and_touches_nothing(checkout):
    lock = (checkout / "dvc.lock").read_bytes()
    output = dvc(checkout, "repro", f"smoke@{CELL}")
    assert output.count("didn't change, skipping") == 6
    assert "Running stage" not in output
    assert (checkout / "dvc.lock").read_bytes() == lock


def test_the_same_checkout_gives_the_same_bundle_elsewhere(checkout, artifact):
    here = Bundle.load(artifact("bundle")).manifest
    there = Bundle.load(checkout / "artifacts" / "tiny-custom-voice" / "int8" / "bundle").manifest
    assert there["files"] == here["files"]
    assert there["bundle_id"] == here["bundle_id"]


def test_outputs_in_dvcs_cache_survive_a_rerun_of_their_stage(checkout):
    """The stage replaces linked, read-only files; the cache behind them must keep its content."""
    dvc(checkout, "repro", "--force", "--single-item", f"bundle@{CELL}")
    assert stale(checkout) == set()
    shutil.rmtree(checkout / "artifacts" / "tiny-custom-voice" / "int8" / "bundle")
    dvc(checkout, "checkout", f"bundle@{CELL}")
    Bundle.load(checkout / "artifacts" / "tiny-custom-voice" / "int8" / "bundle")


@pytest.mark.parametrize(
    ("file", "edit", "expected"),
    [
        ("conf/precision/int8.yaml", "edited: 1\n", {"compress", "bundle"}),
        ("conf/precision/int8.yaml", "# only a comment\n", set()),
        ("conf/precision/fp16.yaml", "edited: 1\n", set()),
        ("conf/variant/tiny-custom-voice.yaml", "edited: 1\n", {"download", "bundle"}),
        ("conf/variant/tiny-base.yaml", "edited: 1\n", set()),
        ("conf/smoke/default.yaml", "edited: 1\n", {"smoke"}),
        ("model_src/talker.py", "# edited\n", {"build", "export"}),
        ("pipeline/bundle.py", "# edited\n", {"bundle"}),
        ("pipeline/publish.py", "# edited\n", set()),
        ("README.md", "edited\n", set()),
    ],
)
def test_an_edit_makes_stale_what_depends_on_it_and_nothing_else(checkout, file, edit, expected):
    original = (checkout / file).read_text()
    try:
        (checkout / file).write_text(original + edit)
        assert stale(checkout) == expected
    finally:
        (checkout / file).write_text(original)


def imported(module: Path, seen: set[Path]) -> set[Path]:
    """The files of this repository that a module imports, anywhere in it and in what it imports."""
    if module in seen:
        return seen
    seen.add(module)
    for node in ast.walk(ast.parse(module.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(module.relative_to(ROOT).parts[: -node.level]) if node.level else ""
            base = ".".join(filter(None, [package, node.module]))
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            path = ROOT.joinpath(*name.split("."))
            for file in (path.with_suffix(".py"), path / "__init__.py"):
                if file.is_file():
                    imported(file, seen)
    return seen


@pytest.mark.parametrize("stage", DVC_YAML["stages"])
def test_a_stage_depends_on_all_code_that_it_imports(stage):
    deps = [ROOT / name for name in DVC_YAML["stages"][stage]["deps"] if "${" not in name]
    assert [dep for dep in deps if not dep.exists()] == []
    for file in imported(ROOT / "pipeline" / f"{stage}.py", set()):
        covered = any(file == dep or dep in file.parents for dep in deps)
        assert covered or file.name == "__init__.py", f"{stage} imports {file.relative_to(ROOT)}, no dep in dvc.yaml"


def test_the_metrics_name_every_cell():
    cells = [f"artifacts/{v}/{p}/smoke/report.json" for v in AXES["variants"] for p in AXES["precisions"]]
    assert sorted(DVC_YAML["metrics"]) == sorted(cells)
