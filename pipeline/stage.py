"""Shared by all stages: configuration, paths, outputs that appear whole or not at all, reports, one-line errors.

A stage module holds `run(cfg)` and ends with `if __name__ == "__main__": main(run)`; it is called as
`python -m pipeline.<stage> variant=<name> precision=<name>` from the root of the checkout.
"""

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import hydra
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import track as rich_track

from qwen3_tts_ov.output import check_place

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
KINDS = ("base", "custom_voice", "voice_design")  # of checkpoints: their tts_model_type
REPORT = "report.json"
METRICS, PLOTS = "metrics", "plots"  # folders beside the outputs, with one JSON file for each
Item = TypeVar("Item")


class PipelineError(Exception):
    """Bad input or a failed gate; the message is one line for people: what is wrong, where, what to do."""


@dataclass(frozen=True)
class Paths:
    """The directories of one cell of the matrix; each is the only output of one stage."""

    checkpoint: Path
    model: Path
    ir: Path
    rollout: Path
    compressed: Path
    bundle: Path
    smoke: Path
    score: Path
    release: Path


def paths(cfg: DictConfig, layout: str | None = None) -> Paths:
    """Where the stages of a cell read and write in a layout, `cfg.layout` if none is named."""
    return paths_of(Path(cfg.artifacts), cfg.variant.name, cfg.precision.name, layout or cfg.layout.name)


def paths_of(artifacts: Path, variant: str, precision: str, layout: str = "native") -> Paths:
    """As `paths`, by name: composing a configuration for them takes a quarter of a second.

    The graphs that a layout adds, and its bundle, lie in a folder of its name beside those of the native layout.
    """
    own = "" if layout == "native" else layout
    shared, cell = artifacts / variant, artifacts / variant / precision
    return Paths(
        checkpoint=shared / "checkpoint",
        model=shared / own / "model",
        ir=shared / own / "ir",
        rollout=shared / "rollout",
        compressed=cell / own / "ir",
        bundle=cell / own / "bundle",
        smoke=cell / own / "smoke",
        score=cell / own / "score",
        release=cell / own / "release",
    )


def configuration(overrides: Sequence[str] = ()) -> DictConfig:
    """Composes conf/ with Hydra overrides such as `variant=tiny-base`.

    Raises PipelineError for an override that Hydra refuses; an unknown name in a group lists the known ones.
    """
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            return compose("config", overrides=list(overrides))
    except MissingConfigException as error:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        if error.options is None:
            raise PipelineError(one_line(error)) from error
        raise PipelineError(f"unknown {group} {name!r}; known: {', '.join(sorted(error.options))}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise PipelineError(one_line(error)) from error


def main(stage: Callable[[DictConfig], None]) -> None:
    """Runs a stage with the overrides on the command line. An expected error is one line and exit code 1.

    Options such as `--help`, `--cfg job` and `--multirun` are answered by Hydra.
    """

    @wraps(stage)
    def task(cfg: DictConfig) -> None:
        with errors_for_people():
            stage(cfg)

    with errors_for_people():
        if not any(argument.startswith("-") for argument in sys.argv[1:]):
            stage(configuration(sys.argv[1:]))  # without Hydra's plugins and loggers, which take longer to start
            return
    if run_as := sys.modules["__main__"].__spec__:
        task.__module__ = run_as.name.removesuffix(".__main__")  # Hydra's name of the job
    hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(task)()


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Ends the process on an expected error, with one line and exit code 1; others pass with their traceback."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; nothing half-written is left", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not isinstance(error, expected_errors()):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(1)


def expected_errors() -> tuple[type[Exception], ...]:
    """Errors of the world and of the input, not of the program.

    An error of a package can only have been raised where that package is loaded, so none is imported for it.
    """
    known = (
        ("model_src.checkpoint", "CheckpointError"),
        ("model_src.config", "ConfigError"),
        ("qwen3_tts_ov.errors", "Qwen3TTSError"),
        ("safetensors", "SafetensorError"),
        ("httpx2", "HTTPError"),
        ("dvc.exceptions", "DvcException"),
    )
    loaded = filter(None, (getattr(sys.modules.get(module), name, None) for module, name in known))
    return (PipelineError, OSError, OmegaConfBaseException, *loaded)


def one_line(error: BaseException) -> str:
    """The message of an error on one line; the class's name where it has none."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def output(path: Path, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """A fresh directory beside `path` that takes its place when the block ends, and vanishes when it raises.

    The metrics and plots that `report` left in it go to their folders beside `path` at the same time.
    Until then whatever stood at `path` stays untouched. Nothing is written in place: DVC may have linked the files
    there to its cache. What a killed run left beside `path` is removed first.

    Raises PipelineError when another run is writing the same output, and AudioError where the output would replace
    one of the `inputs`, files or folders, or lie in a bundle.
    """
    check_place(path, inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path)
    fresh = path.with_name(f".{path.name}.{uuid4().hex}.new")
    fresh.mkdir()
    lock = os.open(fresh, os.O_RDONLY)
    try:
        # Held until the process is gone, however it goes; it tells a run at work from a leftover.
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield fresh
        sync(fresh)
        for kind in (METRICS, PLOTS):
            if (found := fresh / f".{kind}.json").exists():
                (path.parent / kind).mkdir(exist_ok=True)
                found.replace(path.parent / kind / f"{path.name}.json")
        swap(fresh, path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def clear_leftovers(path: Path) -> None:
    """Removes what killed runs left beside `path`, and puts back the old output of one killed between two renames."""
    for fresh in path.parent.glob(f".{path.name}.*.new"):
        if not unlocked(fresh):
            raise PipelineError(f"{path}: another run is writing it; wait for that one to end")
        shutil.rmtree(fresh)
    for old in path.parent.glob(f".{path.name}.*.old"):
        if path.exists():
            shutil.rmtree(old)
        else:
            old.rename(path)


def unlocked(directory: Path) -> bool:
    """Whether no process holds the lock of a directory: the system releases it with the process."""
    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def sync(directory: Path) -> None:
    """Writes a tree through to the disk, so that a rename never outlives its data."""
    for folder, _, names in os.walk(directory):
        for name in [*names, "."]:
            handle = os.open(Path(folder, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def swap(fresh: Path, path: Path) -> None:
    """Renames `fresh` to `path`; what stood there steps aside first and is then removed."""
    old = fresh.with_suffix(".old")
    with suppress(FileNotFoundError):
        path.rename(old)
    try:
        fresh.rename(path)
    except BaseException:
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, data: Any) -> None:
    """Writes JSON in a canonical form: sorted keys, indented, one newline at the end; NaN is refused."""
    text = json.dumps(data, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def report(directory: Path, data: dict[str, Any], points: list[dict[str, Any]] | None = None) -> None:
    """Writes what a stage found, into a directory of `output`.

    report.json is a part of the output, so it leaves out every key `measured`: time and memory, which differ from run
    to run. The whole goes to <folder of the output>/metrics/<output>.json, and `points` of a plot to plots/ there.
    """
    reproducible = without_measured(data)
    write_json(directory / REPORT, reproducible)
    if data != reproducible:
        write_json(directory / f".{METRICS}.json", data)
    if points is not None:
        write_json(directory / f".{PLOTS}.json", points)


def read_report(directory: Path) -> dict[str, Any]:
    """The report of an earlier stage, without times and memory. Raises PipelineError where that stage has not run."""
    return read_json(directory / REPORT)


def read_metrics(directory: Path) -> dict[str, Any]:
    """The report of an earlier stage with the times and memory of its last run.

    Raises PipelineError where the stage has not run, or where its metrics are not of the output that lies there.
    """
    metrics: dict[str, Any] = read_json(metrics_of(directory))
    if without_measured(metrics) != read_report(directory):
        raise PipelineError(f"{directory} and its metrics are from different runs; `dvc checkout` restores both")
    return metrics


def metrics_of(directory: Path) -> Path:
    """Where `report` puts the metrics of an output."""
    return directory.parent / METRICS / f"{directory.name}.json"


def read_json(path: Path) -> Any:
    """A JSON file of an earlier stage. Raises PipelineError where that stage has not run or the file is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        absent = path.parent if path.name == REPORT else path  # a report stands for its stage's output
        raise PipelineError(f"{absent} is missing; run the stage that makes it, or `dvc repro`") from None
    except ValueError as error:
        raise PipelineError(f"{path} is damaged ({error}); run its stage again") from None


def without_measured(data: Any) -> Any:
    """A report without what depends on the machine and the hour: every key `measured`."""
    if isinstance(data, dict):
        return {key: without_measured(value) for key, value in data.items() if key != "measured"}
    return [without_measured(value) for value in data] if isinstance(data, list) else data


def list_files(directory: Path) -> list[str]:
    """Relative paths of all files below a directory, sorted."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def fingerprint(path: Path) -> dict[str, Any]:
    """Size in bytes and sha256 of a file."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns the result of a function called in a fresh process, whose memory is given back when it ends.

    Raises PipelineError when the process dies, as it does when the system takes its memory away.
    """
    context = multiprocessing.get_context("forkserver")
    # A child imports what its parent's main module does: torch alone takes two seconds. Here it is done once for all.
    context.set_forkserver_preload([name for name in sys.modules if name.startswith("pipeline.")])
    with ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise PipelineError(
                f"{function.__module__}.{function.__name__} was killed; is there enough free memory?"
            ) from None


def _end_with_parent() -> None:
    """Ends this process when its parent has gone, even if that was killed; it would keep gigabytes and a core."""

    def wait() -> None:
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def track(items: Sequence[Item], description: str) -> Iterator[Item]:
    """Yields the items under a progress bar on a terminal, with one plain line for each elsewhere."""
    if sys.stderr.isatty():
        yield from rich_track(items, description=description, console=Console(stderr=True))
        return
    for number, item in enumerate(items, start=1):
        print(f"{description} {number}/{len(items)}: {item}", file=sys.stderr, flush=True)
        yield item
