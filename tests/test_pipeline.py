"""DVC runs the stages: one cell end to end in a fresh checkout, nothing the second time, one column after an edit."""

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.stage import ROOT
from qwen3_tts_ov.bundle import Bundle, verified
from tests.conftest import dvc, make, new_checkout

CELL = "tiny-custom-voice-int8"
DVC_YAML = yaml.safe_load((ROOT / "dvc.yaml").read_text())
AXES = yaml.safe_load((ROOT / "params.yaml").read_text())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A checkout of its own, since these tests edit it, with one cell built from the checkpoint to the smoke report."""
    checkout = new_checkout(tmp_path_factory.mktemp("pipeline") / "repository")
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
    assert output.count("didn't change, skipping") == 7
    assert "Running stage" not in output
    assert (checkout / "dvc.lock").read_bytes() == lock


def test_two_checkouts_of_one_commit_build_the_same_bundle_to_the_last_byte(checkout, artifact):
    first, second = checkout / "artifacts" / "tiny-custom-voice" / "int8" / "bundle", artifact("bundle")
    assert first.parents[3] != second.parents[3], "each has run every stage"
    assert (first / "SHA256SUMS").read_text() == (second / "SHA256SUMS").read_text()
    ids = [Bundle.load(folder).manifest["bundle_id"] for folder in (first, second)]
    assert ids[0] == ids[1]


def test_another_machine_publishes_what_this_one_built_and_builds_nothing(checkout, tmp_path):
    """The commands of the workflows: machines plan and meet in a DVC remote, which says what is built."""
    axes, remote = ["VARIANTS=tiny-custom-voice tiny-base", "PRECISIONS=int8"], f"REMOTE={tmp_path / 'remote'}"
    cell = ["VARIANT=tiny-custom-voice", "PRECISION=int8"]
    original = (checkout / "params.yaml").read_text()
    dvc(checkout, "repro", f"score@{CELL}")
    assert "Running stage" not in make(checkout, "only", "cell", *axes, *cell, remote)
    (checkout / "params.yaml").write_text(original)

    other = tmp_path / "publisher"
    subprocess.run(["git", "clone", "-q", str(checkout), str(other)], check=True)
    plan = make(other, "--silent", "only", "plan", *axes, remote).splitlines()
    assert plan[-3:] == [
        'shared=["tiny-base"]',
        'cells=["tiny-base-int8"]',
        'matrix={"variant": ["tiny-custom-voice", "tiny-base"], "precision": ["int8"]}',
    ]
    assert "Running stage" not in make(other, "only", "cell", *axes, *cell, remote)
    assert not (other / "artifacts" / "tiny-custom-voice" / "checkpoint").exists(), "nor is fetched what is not needed"
    assert "| tiny-custom-voice | int8 |" in make(other, "summary")
    make(other, "publish", *cell, "TO=publish.path=out publish.branch=nightly publish.tag=")
    verified(other / "out" / "tiny-custom-voice-int8-ov" / "nightly")


def test_outputs_linked_to_dvcs_cache_survive_a_rerun_of_their_stage(checkout):
    """A user's outputs are read-only links into the cache; a stage replaces them and must not write through them."""
    bundle = checkout / "artifacts" / "tiny-custom-voice" / "int8" / "bundle"
    dvc(checkout, "config", "--local", "--unset", "cache.type")
    try:
        dvc(checkout, "checkout", "--relink", f"bundle@{CELL}")
        assert (bundle / "manifest.json").stat().st_nlink == 2
        dvc(checkout, "repro", "--force", "--single-item", f"bundle@{CELL}")
        assert stale(checkout) == set()
        shutil.rmtree(bundle)
        dvc(checkout, "checkout", f"bundle@{CELL}")
        Bundle.load(bundle)
    finally:
        dvc(checkout, "config", "--local", "cache.type", "copy")
        dvc(checkout, "checkout", "--relink", f"bundle@{CELL}")


@pytest.mark.parametrize(
    ("file", "edit", "expected"),
    [
        ("conf/precision/int8.yaml", "edited: 1\n", {"compress", "bundle"}),
        ("conf/precision/int8.yaml", "# only a comment\n", set()),
        ("conf/precision/common/default.yaml", "edited: 1\n", {"compress", "bundle"}),
        ("conf/precision/fp16.yaml", "edited: 1\n", set()),
        ("conf/variant/tiny-custom-voice.yaml", "edited: 1\n", {"download", "bundle"}),
        ("conf/variant/tiny-base.yaml", "edited: 1\n", set()),
        ("conf/smoke/default.yaml", "edited: 1\n", {"smoke"}),
        ("model_src/talker.py", "# edited\n", {"build", "export", "rollout", "compress"}),
        ("pipeline/bundle.py", "# edited\n", {"bundle"}),
        ("pipeline/release/attestations.py", "# edited\n", {"bundle"}),
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
    modules = re.findall(r"-m pipeline\.(\w+)", str(DVC_YAML["stages"][stage]["cmd"]))
    for file in {file for module in modules for file in imported(ROOT / "pipeline" / f"{module}.py", set())}:
        covered = any(file == dep or dep in file.parents for dep in deps)
        assert covered or file.name == "__init__.py", f"{stage} imports {file.relative_to(ROOT)}, no dep in dvc.yaml"


def test_the_metrics_name_every_cell():
    cells = [f"artifacts/{v}/{p}/smoke/report.json" for v in AXES["variants"] for p in AXES["precisions"]]
    assert sorted(DVC_YAML["metrics"]) == sorted(cells)
