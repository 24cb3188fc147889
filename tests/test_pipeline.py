"""DVC runs the stages: a cell end to end in a fresh checkout, nothing the second time, one column after an edit."""

import ast
import json
import re
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from pipeline.fleet.plan import read_lock
from pipeline.stage import ROOT
from qwen3_tts_ov.bundle import Bundle, verified
from tests.conftest import copied, dvc, make, new_checkout

CELL = "tiny-custom-voice-int8"
DVC_YAML = yaml.safe_load((ROOT / "dvc.yaml").read_text())


@pytest.fixture(scope="module")
def checkout(built, tmp_path_factory) -> Path:
    """A separate checkout, since these tests edit it, with one cell built from checkpoint to smoke report."""
    return copied(built, tmp_path_factory.mktemp("pipeline") / "repository")


def stale(checkout: Path) -> set[str]:
    """The stages of the built cell with a changed input."""
    with chdir(checkout), Repo() as repo:  # `dvc status`, without the seconds that it takes to start
        return {name.partition("@")[0] for name in repo.status([f"smoke@{CELL}"], with_deps=True)}


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


def test_another_machine_publishes_what_this_one_built_and_builds_nothing(checkout, tmp_path):
    """The commands of the workflows: machines plan and share a DVC remote, which records what is built."""
    axes, remote = ["VARIANTS=tiny-custom-voice tiny-base", "PRECISIONS=int8"], f"REMOTE={tmp_path / 'remote'}"
    cell = ["VARIANT=tiny-custom-voice", "PRECISION=int8"]
    dvc(checkout, "repro", f"score@{CELL}")
    assert "Running stage" not in make(checkout, "cell", *axes, *cell, remote)

    other = tmp_path / "publisher"
    subprocess.run(["git", "clone", "-q", str(checkout), str(other)], check=True)
    plan = make(other, "--silent", "plan", *axes, remote).splitlines()
    assert plan[-3:] == [
        'shared=["tiny-base"]',
        'cells=["tiny-base-int8"]',
        'matrix={"variant": ["tiny-custom-voice", "tiny-base"], "precision": ["int8"]}',
    ]
    assert "Running stage" not in make(other, "cell", *axes, *cell, remote)
    assert not (other / "artifacts" / "tiny-custom-voice" / "checkpoint").exists(), "nothing unneeded is fetched"
    assert "| tiny-custom-voice | int8 |" in make(other, "summary")
    make(other, "publish", *cell, "TO=publish.path=out publish.branch=nightly publish.tag=")
    release = other / "out" / "tiny-custom-voice-int8-ov" / "nightly"
    verified(release)
    entries, shared = read_lock(release), ("download", "build", "export", "rollout")
    assert entries.keys() == {
        *(f"{s}@tiny-custom-voice" for s in shared),
        *(f"{s}@{CELL}" for s in ("compress", "bundle", "smoke")),
    }
    assert entries == {name: entry for name, entry in read_lock(checkout).items() if name in entries}
    assert "dvc.lock" in (release / "SHA256SUMS").read_text()
    changed = subprocess.run(["git", "diff", "--exit-code", "--stat"], cwd=other, check=False)
    assert changed.returncode == 0, "params.yaml is the user's"


def test_a_cell_is_known_by_the_names_of_conf(checkout):
    plan = make(checkout, "--silent", "plan", "VARIANTS=0.6b-base", "PRECISIONS=int4-max", "CELLS=0.6b-base-*")
    assert 'cells=["0.6b-base-int4-max"]' in plan.splitlines()
    done = subprocess.run(
        ["make", "--assume-old=.venv/.installed", "cell", "VARIANT=0.7b"], cwd=checkout, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert re.match(r"error: unknown variant '0.7b'; known: 0.6b-base, .*\n", done.stderr)


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_stages_run_in_the_environment_of_the_dvc_that_is_called_by_its_path(tmp_path, shell):
    (tmp_path / "pipeline").mkdir()
    shutil.copy2(ROOT / "pipeline" / "python", tmp_path / "pipeline")
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  which:\n    cmd: pipeline/python -c 'import sys; print(sys.prefix)' > prefix\n    outs: [prefix]\n"
    )
    dvc(tmp_path, "init", "--no-scm", "-q")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "SHELL": shell}
    for command in ([f"{sys.prefix}/bin/dvc"], [sys.executable, "-m", "dvc"]):
        subprocess.run([*command, "repro", "-q", "-f"], cwd=tmp_path, env=environment, check=True)
        assert (tmp_path / "prefix").read_text().strip() == sys.prefix


def test_outputs_linked_to_dvcs_cache_survive_a_rerun_of_their_stage(checkout):
    """A user's outputs may be read-only links into the cache; a stage replaces them and must not write through them."""
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
        ("conf/precision/common/default.yaml", "edited: 1\n", {"compress", "bundle"}),
        ("conf/variant/tiny-custom-voice.yaml", "edited: 1\n", {"download", "bundle", "smoke"}),
        ("conf/smoke/default.yaml", "edited: 1\n", {"smoke"}),
        ("model_src/talker.py", "# edited\n", {"build", "export", "rollout", "compress"}),
        ("pipeline/bundle.py", "# edited\n", {"bundle"}),
        ("pipeline/release/attestations.py", "# edited\n", {"bundle"}),
        ("qwen3_tts_ov/engine.py", "# edited\n", {"rollout", "smoke"}),
    ],
)
def test_an_edit_makes_only_dependent_stages_stale(checkout, file, edit, expected):
    original = (checkout / file).read_text()
    try:
        (checkout / file).write_text(original + edit)
        assert stale(checkout) == expected
    finally:
        (checkout / file).write_text(original)


# Together, since a status takes a second; a stage that one of them makes stale is named.
NEEDLESS = {
    "conf/precision/int8.yaml": "# just a comment\n",
    "conf/precision/fp16.yaml": "edited: 1\n",
    "conf/variant/tiny-base.yaml": "edited: 1\n",
    "pipeline/publish.py": "# edited\n",
    "pipeline/fleet/plan.py": "# edited\n",
    "pipeline/release/card.py": "# edited\n",
    "qwen3_tts_ov/app/server.py": "# edited\n",
    "README.md": "edited\n",
}


def test_edits_of_what_no_stage_reads_make_none_stale(checkout):
    original = {file: (checkout / file).read_text() for file in NEEDLESS}
    try:
        for file, edit in NEEDLESS.items():
            (checkout / file).write_text(original[file] + edit)
        assert stale(checkout) == set()
    finally:
        for file, text in original.items():
            (checkout / file).write_text(text)


def imported(module: Path, seen: set[Path]) -> set[Path]:
    """The files of this repository that a module imports, directly or indirectly, anywhere in its code."""
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
        covered = any(file == dep or dep in file.parents for dep in deps) and "app" not in file.parts  # see .dvcignore
        assert covered or file.name == "__init__.py", f"{stage} imports {file.relative_to(ROOT)}, no dep in dvc.yaml"


def test_metrics_and_plots_are_those_of_the_cells_that_params_yaml_names(tmp_path):
    clone = new_checkout(tmp_path / "clone")
    (clone / "params.yaml").write_text("variants: [0.6b-base]\nprecisions: [int8]\nlayouts: [npu]\n")
    cell = clone / "artifacts/0.6b-base/int8"
    for kind, content in (("metrics", {"frames": 7}), ("plots", [{"audio_seconds": 1.0, "seconds": 0.5}])):
        (cell / kind).mkdir(parents=True)
        (cell / kind / "smoke.json").write_text(json.dumps(content))
    shown = json.loads(dvc(clone, "metrics", "show", "--json"))
    assert shown[""]["data"] == {"artifacts/0.6b-base/int8/metrics/smoke.json": {"data": {"frames": 7}}}
    dvc(clone, "plots", "show", "--out", "pictures")
    assert "artifacts_0_6b-base_int8_plots_smoke_json" in (clone / "pictures/index.html").read_text()
