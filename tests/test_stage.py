"""The code that all stages share: outputs are atomic, however the process ends, and errors are one line."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from pipeline.stage import (
    ROOT,
    PipelineError,
    configuration,
    metrics_of,
    output,
    paths,
    read_metrics,
    read_report,
    report,
    write_json,
)
from qwen3_tts_ov import AudioError
from tests.conftest import until

# A stage that reports its progress and waits there to be killed. `pause` is called at every step of the real code.
STAGE = """
import os, sys, time
from pathlib import Path
from pipeline import stage

def pause(point):
    if point == sys.argv[2]:
        print("at", point, flush=True)
        time.sleep(60)

def before(point, function):
    def wrapped(*arguments, **keywords):
        pause(point)
        return function(*arguments, **keywords)
    return wrapped

target = Path(sys.argv[1])
stage.sync = before("before sync", stage.sync)
stage.swap = before("before swap", stage.swap)
rename = Path.rename
Path.rename = lambda self, to: (pause("between renames") if self.suffix == ".new" else None, rename(self, to))[1]
stage.shutil.rmtree = before("before the old one goes", stage.shutil.rmtree)

with stage.output(target) as fresh:
    pause("empty")
    (fresh / "weights.bin").write_bytes(b"new" * 1000)
    pause("half written")
    stage.report(fresh, {"made": "new"})
    pause("written")
"""
POINTS = (
    "empty",
    "half written",
    "written",
    "before sync",
    "before swap",
    "between renames",
    "before the old one goes",
)


def start_stage(target: Path, point: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(STAGE), str(target), point]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def make(target: Path, content: str) -> None:
    with output(target) as fresh:
        (fresh / "weights.bin").write_text(content)
        write_json(fresh / "report.json", {"made": content})


@pytest.mark.parametrize(
    ("point", "earlier"),
    [(point, True) for point in POINTS] + [(point, False) for point in POINTS[:-1]],
)
def test_a_stage_killed_at_any_point_leaves_the_old_output_or_the_whole_new_one(tmp_path, point, earlier):
    target = tmp_path / "cell" / "ir"
    if earlier:
        make(target, "old")

    process = start_stage(target, point)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == f"at {point}"
    process.send_signal(signal.SIGKILL)
    process.wait()

    if target.exists():
        made = json.loads((target / "report.json").read_text())["made"]
        assert made == ("new" if point == "before the old one goes" else "old")
        assert (target / "weights.bin").exists()
    else:
        assert point == "between renames" or not earlier

    make(target, "rerun")
    assert read_report(target) == {"made": "rerun"}
    assert os.listdir(target.parent) == ["ir"]


def test_an_old_output_set_aside_by_a_killed_run_returns_when_the_rerun_fails(tmp_path):
    target = tmp_path / "ir"
    make(target, "old")
    process = start_stage(target, "between renames")
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.wait()

    with pytest.raises(PipelineError, match="gate"), output(target):
        raise PipelineError("gate failed")
    assert read_report(target) == {"made": "old"}
    assert os.listdir(tmp_path) == ["ir"]


def test_an_error_leaves_the_earlier_output_and_nothing_beside_it(tmp_path):
    target = tmp_path / "ir"
    make(target, "old")
    with pytest.raises(ZeroDivisionError), output(target) as fresh:
        (fresh / "weights.bin").write_text("half")
        raise ZeroDivisionError
    assert (target / "weights.bin").read_text() == "old"
    assert os.listdir(tmp_path) == ["ir"]


def test_a_second_run_of_the_same_output_is_refused_while_the_first_is_running(tmp_path):
    target = tmp_path / "ir"
    process = start_stage(target, "half written")
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(PipelineError, match="another run is writing it"), output(target):
            pass
        make(tmp_path / "bundle", "of another stage")
        assert len(list(tmp_path.glob(".ir.*.new/weights.bin"))) == 1
    finally:
        process.kill()
        process.wait()


def test_files_linked_to_a_cache_are_replaced_and_never_written(tmp_path):
    """DVC hardlinks outputs to its cache, read-only; root could write through such a link and corrupt the cache."""
    target = tmp_path / "ir"
    make(target, "old")
    cached = tmp_path / "cached"
    os.link(target / "weights.bin", cached)
    cached.chmod(0o444)
    make(target, "new")
    assert cached.read_text() == "old"
    assert (target / "weights.bin").read_text() == "new"


def test_a_file_over_the_size_limit_is_one_line_and_the_earlier_output_stays(tmp_path):
    target = tmp_path / "ir"
    make(target, "old")
    script = f"""
        import resource
        from pathlib import Path
        from pipeline import stage
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        def run(cfg):
            with stage.output(Path({str(target)!r})) as fresh:
                (fresh / "weights.bin").write_bytes(bytes(8192))
        stage.main(run)
    """
    done = run_python("-c", textwrap.dedent(script))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert read_report(target) == {"made": "old"}
    assert os.listdir(tmp_path) == ["ir"]


def test_a_full_disk_is_one_line(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs privileges that are missing here")
    try:
        script = f"""
            from pathlib import Path
            from pipeline import stage
            def run(cfg):
                with stage.output(Path({str(disk / "ir")!r})) as fresh:
                    (fresh / "weights.bin").write_bytes(bytes(1 << 20))
            stage.main(run)
        """
        done = run_python("-c", textwrap.dedent(script))
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        assert done.stderr.count("\n") == 1
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("override", "group", "known"),
    [("variant=nope", "variant", "tiny-base"), ("precision=int3", "precision", "fp16")],
)
def test_an_unknown_name_lists_the_known_ones_in_one_line(override, group, known):
    done = run_python("-m", "pipeline.bundle", override)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: unknown {group} {override.split('=')[1]!r}; known: ")
    assert known in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--help"], "precision: fp16, int4, int4-channel, int4-max, int8"),
        (["--cfg", "job", "precision=fp16"], "name: fp16"),
        (["--info", "config"], "Config search path"),
        (["--hydra-help"], "See https://hydra.cc"),
        (["-m", "variant=tiny-base,tiny-voice-design"], "| variant | precision |"),
    ],
)
def test_hydras_options_work_as_usual_and_leave_no_files(options, said):
    before = set(os.listdir(ROOT))
    done = run_python("-m", "pipeline.summary", *options)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert done.stdout.count(said) == (2 if options[0] == "-m" else 1)
    assert set(os.listdir(ROOT)) == before


def test_an_error_of_a_stage_under_multirun_is_one_line():
    done = run_python("-m", "pipeline.export", "--multirun", "artifacts=no/such")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: no/such/tiny-custom-voice/checkpoint is missing; run the stage that makes it")


@pytest.mark.parametrize("override", ["seeds=1", "variant.nam=x", "seed"])
def test_a_meaningless_override_is_refused(override):
    with pytest.raises(PipelineError):
        configuration([override])


def test_every_conf_file_carries_its_own_name():
    """Paths use `name`, DVC's dependencies use the file name; they must agree."""
    for group in ("variant", "precision", "layout"):
        for file in sorted((ROOT / "conf" / group).glob("*.yaml")):
            cfg = configuration([f"{group}={file.stem}"])
            assert cfg[group].name == file.stem, file


def test_the_cells_of_the_matrix_share_no_directory():
    cells = [
        paths(configuration([f"variant={variant}", f"precision={precision}"]))
        for variant in ("tiny-base", "tiny-custom-voice")
        for precision in ("fp16", "int8")
    ]
    assert len({cell.bundle for cell in cells} | {cell.compressed for cell in cells}) == 8


def test_a_missing_or_damaged_report_says_what_to_run(tmp_path):
    with pytest.raises(PipelineError, match="run the stage that makes it"):
        read_report(tmp_path / "ir")
    (tmp_path / "report.json").write_text('{"half": ')
    with pytest.raises(PipelineError, match="damaged"):
        read_report(tmp_path)


def test_an_output_is_the_same_on_every_run_with_times_kept_beside_it(tmp_path):
    target, found, runs = tmp_path / "ir", {"size": 1, "devices": {"CPU": {"rms": 2.0}}}, []
    for seconds in (1.0, 2.0):
        measured = {**found, "devices": {"CPU": {"rms": 2.0, "measured": {"seconds": seconds}}}}
        with output(target) as fresh:
            report(fresh, measured, [{"x": seconds}])
        assert sorted(os.listdir(target)) == ["report.json"]
        assert read_report(target) == found
        assert read_metrics(target) == measured
        assert json.loads((tmp_path / "plots" / "ir.json").read_text()) == [{"x": seconds}]
        runs.append((target / "report.json").read_bytes())
    assert runs[0] == runs[1]
    assert sorted(os.listdir(tmp_path)) == ["ir", "metrics", "plots"]


def test_metrics_of_a_different_run_are_refused(tmp_path):
    with output(tmp_path / "ir") as fresh:
        report(fresh, {"size": 1, "measured": {"seconds": 1}})
    write_json(metrics_of(tmp_path / "ir"), {"size": 2, "measured": {"seconds": 1}})
    with pytest.raises(PipelineError, match="from different runs; `dvc checkout` restores both"):
        read_metrics(tmp_path / "ir")
    metrics_of(tmp_path / "ir").unlink()
    with pytest.raises(PipelineError, match=r"metrics/ir.json is missing; run the stage that makes it"):
        read_metrics(tmp_path / "ir")


def test_a_killed_stage_takes_its_processes_with_it():
    """They would keep the memory of a model that nobody waits for."""
    script = "import time; from pipeline.stage import alone; alone(time.sleep, 600)"
    stage = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    own = psutil.Process(stage.pid)
    until(lambda: len(own.children(recursive=True)) == 3)  # forkserver, resource tracker, worker
    children = own.children(recursive=True)
    stage.kill()
    stage.wait()
    until(lambda: not any(child.is_running() for child in children))


def test_json_with_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "report.json", {"error": float("nan")})


def test_an_output_never_replaces_an_input_or_lies_in_a_bundle(tmp_path):
    kept = tmp_path / "checkpoint" / "model.safetensors"
    kept.parent.mkdir()
    kept.write_text("weights")
    for read in (kept, kept.parent):
        with pytest.raises(AudioError, match="would overwrite"), output(kept.parent, [read]):
            pass
    (tmp_path / "manifest.json").write_text('{"bundle_id": "1"}')
    with pytest.raises(AudioError, match="would lie in the bundle"), output(kept.parent):
        pass
    assert kept.read_text() == "weights"
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "manifest.json"]
