"""Shared fixtures: artifacts of the real stages, each built once per run and only when a test requests it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from copy import deepcopy
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from pipeline.stage import ROOT, configuration, paths_of
from tests.official import GOLDEN, LIVE, VARIANTS, Official

# Stages and the outputs that `paths` gives for them, in order of dependency.
STAGES = {
    "download": "checkpoint",
    "build": "model",
    "export": "ir",
    "rollout": "rollout",
    "compress": "compressed",
    "bundle": "bundle",
    "smoke": "smoke",
}
LONGEST = {f"test_{name}.py" for name in ("cli", "documentation", "edges", "pipeline", "publish", "speech")}

SPOKEN = ("chinese", "english", "german")  # by the rollouts of tests
FRAMES = 24  # the most that a checkpoint of random weights says at a time

# The cells of tests: random weights are small, and none needs more.
AXES = "variants: [tiny-custom-voice, tiny-base, tiny-voice-design]\nprecisions: [fp16, int8, int4]\nlayouts: []\n"


def run_stage(stage: str, *overrides: str, checkout: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs `python -m pipeline.<stage>` from the root of a checkout, as DVC does."""
    return python("-m", f"pipeline.{stage}", *overrides, checkout=checkout)


def python(*arguments: str, checkout: Path) -> subprocess.CompletedProcess[str]:
    """Runs Python from the root of a checkout."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def run_stages(stages: list[str], *overrides: str) -> None:
    """Runs stages one after another in this process: a new one spends seconds on imports, and what it starts as many.

    They say as little as those of the checkout that `abridge` has changed.
    """
    modules = [import_module(f"pipeline.{stage}") for stage in stages]
    cfg = configured(*overrides)
    say_less(cfg.rollout, cfg.smoke)
    with chdir(ROOT):  # from where the processes that they start import them
        for module in modules:
            module.run(cfg)


def dvc(checkout: Path, *arguments: str) -> str:
    """The output of a DVC command, run in a checkout with this environment's packages."""
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=checkout,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": search},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"dvc {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


def make(folder: Path, *arguments: str) -> str:
    """The output of `make` in a checkout, using this environment instead of setting one up."""
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


def configured(*overrides: str) -> DictConfig:
    """`configuration(overrides)` for tests that differ only in their folders: Hydra takes a quarter of a second."""
    folders = [override for override in overrides if "=/" in override]
    cfg = deepcopy(composed(tuple(override for override in overrides if override not in folders)))
    for override in folders:
        OmegaConf.update(cfg, *override.split("=", 1))
    return cfg


@cache
def composed(overrides: tuple[str, ...]) -> DictConfig:
    return configuration(overrides)


def until(condition: Callable[[], bool]) -> None:
    """Waits until a condition that another thread or process will fulfil is true."""
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the condition did not become true within 20 s")


def new_checkout(checkout: Path) -> Path:
    """A repository with this one's files, all committed, and nothing built."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and Path(name).name != "dvc.lock":
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, checkout / name)
    (checkout / "params.yaml").write_text(AXES)
    abridge(checkout)
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    hour = dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), "2026-01-01T00:00:00Z")  # two copies, one commit
    for command in (["init", "-q"], ["add", "--all"], [*identity, "commit", "-qm", "Copy"]):
        subprocess.run(["git", *command], cwd=checkout, check=True, env=os.environ | hour)
    dvc(checkout, "config", "--local", "cache.type", "copy")  # tests damage copies of these outputs
    return checkout


def abridge(checkout: Path) -> None:
    """Has the stages and checkpoints of a checkout say less: random weights tell no more in a minute than in a second.

    They do not end a sentence, so a checkpoint's own limit is where most of their speech is cut.
    """
    limits = checkout / "pipeline" / "checkpoints" / "data" / "release" / "generation_config.json"
    limits.write_text(json.dumps(json.loads(limits.read_text()) | {"max_new_tokens": FRAMES}))
    conf = checkout / "conf"
    rollout, smoke = (OmegaConf.load(conf / stage / "default.yaml") for stage in ("rollout", "smoke"))
    say_less(rollout, smoke)
    OmegaConf.save(rollout, conf / "rollout" / "default.yaml")
    OmegaConf.save(smoke, conf / "smoke" / "default.yaml")


def say_less(rollout: DictConfig, smoke: DictConfig) -> None:
    """Shortens the configuration of the two stages that speak."""
    rollout.texts, rollout.frames, smoke.max_frames = len(SPOKEN), 4, FRAMES
    for split in ("calibration", "held_out"):
        rollout[split] = {language: rollout[split][language] for language in SPOKEN}


def copied(checkout: Path, target: Path) -> Path:
    """A copy of a repository with its cell tiny-custom-voice-int8 and no other, for tests that change it."""

    def others(folder: str, names: list[str]) -> set[str]:
        """What other cells have; other processes may be building them now."""
        if Path(folder) == checkout / "artifacts":
            return set(names) - {"tiny-custom-voice", ".gitignore"}
        if Path(folder) == checkout / "artifacts" / "tiny-custom-voice":
            return set(names) & {"fp16", "int4", "int4-max"}
        return set()

    shutil.copytree(checkout, target, symlinks=True, ignore=others, copy_function=link_large)
    return target


def link_large(source: str, target: str) -> None:
    """Copies a file, or hard-links it if it is large: no program writes to those in place."""
    (os.link if Path(source).stat().st_size > 1_000_000 else shutil.copy2)(source, target)


def free_port() -> int:
    """A free port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder shared by all test processes of a run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def user_cache(run_folder: Path) -> Path:
    """The folder of the user's caches (XDG_CACHE_HOME) for tests that do not look into it."""
    return run_folder / "cache"


@pytest.fixture(scope="session")
def model_cache(user_cache: Path) -> Path:
    """The folder there for compiled models, for tests that only want to speak: compiling takes seconds a bundle."""
    return user_cache / "qwen3-tts-ov" / "models"


@pytest.fixture(scope="session")
def checkout_of_all(run_folder: Path) -> Path:
    """A copy of the repository in which all test processes build what they need."""
    checkout = run_folder / "checkout"
    with FileLock(run_folder / "checkout.lock"):
        if not checkout.exists():
            new_checkout(run_folder / "checkout.new").rename(checkout)
    return checkout


@pytest.fixture(scope="session")
def built(checkout_of_all: Path, run_folder: Path) -> Path:
    """That repository as it was when DVC had built one cell, tiny-custom-voice-int8, from checkpoint to score."""
    with FileLock(run_folder / "tiny-custom-voice.lock"):
        if not (run_folder / "built").exists():
            dvc(checkout_of_all, "repro", "smoke@tiny-custom-voice-int8", "score@tiny-custom-voice-int8")
            copied(checkout_of_all, run_folder / "built.new").rename(run_folder / "built")
    return run_folder / "built"


@pytest.fixture(scope="session")
def artifact(checkout_of_all: Path, run_folder: Path, request: pytest.FixtureRequest) -> Callable[..., Path]:
    """`artifact("bundle", "tiny-base", "int8")`: the output of a stage, built first if it is missing.

    The directories are shared by all test processes; a test that changes one copies it. Different processes may build
    different variants at the same time.
    """

    def get(stage: str, variant: str = "tiny-custom-voice", precision: str = "int8") -> Path:
        cell = (f"variant={variant}", f"precision={precision}", f"artifacts={checkout_of_all / 'artifacts'}")
        where = paths_of(checkout_of_all / "artifacts", variant, precision)
        if variant == "tiny-custom-voice" and stage != "download":
            request.getfixturevalue("built")
        with FileLock(run_folder / f"{variant}.lock"):
            needed = list(STAGES)[: list(STAGES).index(stage) + 1]
            missing = [each for each in needed if not getattr(where, STAGES[each]).exists()]
            if "download" in missing:  # its checkpoints say less in that checkout alone
                done = run_stage("download", *cell, checkout=checkout_of_all)
                assert done.returncode == 0, done.stderr
            run_stages([each for each in missing if each != "download"], *cell)
        made: Path = getattr(where, STAGES[stage])
        return made

    return get


@pytest.fixture(scope="session", autouse=True)
def prebuilt(request: pytest.FixtureRequest, artifact: Callable[..., Path]) -> None:
    """Lets the first two processes of a full run build different variants at once, so that neither waits for the other.

    DVC, which builds the first, takes as long for it as this process for the other two.
    """
    if request.session.testscollected > 500:
        match os.environ.get("PYTEST_XDIST_WORKER"):
            case "gw0":
                artifact("smoke", "tiny-custom-voice")
            case "gw1":
                artifact("smoke", "tiny-base")
                artifact("bundle", "tiny-voice-design")


@pytest.fixture(scope="session")
def bundle_of(artifact: Callable[..., Path]) -> Callable[..., Path]:
    """`bundle_of("openarc")`: a bundle in another runtime's layout, with its graphs beside the native ones."""

    def get(layout: str, variant: str = "tiny-base", precision: str = "int8") -> Path:
        artifacts = artifact("compress", variant, precision).parents[2]
        chosen = (f"variant={variant}", f"precision={precision}", f"layout={layout}", f"artifacts={artifacts}")
        made = paths_of(artifacts, variant, precision, layout).bundle
        with FileLock(artifacts.parent.parent / f"{variant}-{layout}.lock"):
            if not made.exists():
                run_stages(["build", "export", "compress", "bundle"], *chosen)
        return made

    return get


@pytest.fixture(scope="session")
def official_of(artifact: Callable[..., Path], tmp_path_factory) -> Callable[[str], Official]:
    """`official_of("tiny-base")`, loaded once: pytest drops a fixture with parameters when the next one comes."""

    @cache
    def get(variant: str) -> Official:
        scratch = tmp_path_factory.mktemp(variant)
        if LIVE:
            return Official.load(LIVE / variant / "checkpoint", LIVE / variant / "golden.npz", scratch)
        return Official.load(artifact("download", variant), GOLDEN / f"{variant}.npz", scratch)

    return get


@pytest.fixture(scope="session", params=VARIANTS)
def official(request: pytest.FixtureRequest, official_of: Callable[[str], Official]) -> Official:
    """Each variant's checkpoint, with the official package's results for it."""
    return official_of(request.param)


CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()


def pytest_configure() -> None:
    """Keeps each process of a parallel run, and what it starts, on a core of its own where the system can.

    OpenVINO starts as many threads as it sees cores, whatever OMP_NUM_THREADS says, and those of several processes wait
    for each other: a stage of the tiny variants takes as long on one core as on two.
    """
    os.environ["DVC_NO_ANALYTICS"] = "1"  # in repositories that tests make anew
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(CORES)[int(worker.removeprefix("gw")) % len(CORES)]})


@contextmanager
def every_core() -> Iterator[None]:
    """What is started meanwhile may use every core."""
    if not CORES:
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take longest first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the counts that tests made with `record_property`, such as the faults that a release survived."""
    counts: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        counts.update(dict(report.user_properties) if report.when == "call" else {})
    for name, count in counts.items():
        terminalreporter.write_line(f"{count} {name}")
