"""build_group: builds the stale stages of one cell, or of what cells share, and meets other machines in the DVC remote.

    python -m pipeline.fleet.build_group cells=tiny-base        what the cells of a variant share
    python -m pipeline.fleet.build_group cells=tiny-base-int8   a cell; what it needs is pulled where others made it

It is `dvc repro --pull --allow-missing` and `dvc push --run-cache`, without fetching what only tells that nothing is to
be done, and trying a remote that fails again for `fleet.patience` seconds, without building anything twice.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dvc.repo import Repo
from omegaconf import DictConfig

from pipeline.fleet.plan import Entries, Plan, meeting_place, read_lock
from pipeline.stage import PipelineError, main, one_line

Value = TypeVar("Value")
Tell = Callable[[str], None]  # called with what is going on, a few words
FIGURES = ("bundle/manifest.json", "metrics/smoke.json", "smoke/report.json")  # what a model card says of other cells
LONGEST_PAUSE = 15  # seconds between two tries of a remote


class RemoteError(PipelineError):
    """The DVC remote failed; it may come back."""


@dataclass
class Built:
    """What became of a group."""

    entries: Entries = field(default_factory=dict)  # of dvc.lock, for the stages that are done
    seconds: dict[str, float] = field(default_factory=dict)  # of the stages that ran
    retried: list[str] = field(default_factory=list)  # what the remote refused at first
    error: str | None = None


def build(checkout: Path, stages: Sequence[str], lock: Entries, patience: float, tell: Tell) -> Built:
    """Builds in a checkout those of the stages that are stale; `lock` says what is known of them and before them.

    A stage that fails is the result's `error`; what was made before it is pushed and kept. Raises RemoteError when the
    remote has failed for `patience` seconds.
    """
    built = Built()
    insist = Patience(patience, tell, built.retried)
    plan = Plan(Repo(str(checkout)), lock)
    tell("looks into the remote")
    stale = insist("look-up", lambda: plan.stale(stages))
    plan.save(plan.closure(stages))
    if stale:
        tell("pulls")
        if inputs := plan.inputs(stale):
            insist("pull", lambda: dvc(checkout, "pull", *inputs))
        for name in stale:
            tell(name.partition("@")[0])
            start = time.monotonic()
            built.error = reproduce(checkout, name)
            if built.error:
                break
            built.seconds[name] = round(time.monotonic() - start, 1)
        plan.lock |= read_lock(checkout)
        if built.seconds:
            tell("pushes")
            insist("push", lambda: push(plan.repo, [*built.seconds]))
    built.entries = {name: plan.lock[name] for name in stages if name not in stale or name in built.seconds}
    return built


def reproduce(checkout: Path, name: str) -> str | None:
    """Runs a stage through DVC; returns why it failed, in one line, which is the one that it ends with."""
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "--allow-missing", name]
    process = subprocess.Popen(command, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    reasons = []
    for line in process.stdout:
        print(line, end="", flush=True)
        if line.lower().startswith("error: "):  # a stage's own word stands before DVC's
            reasons.append(line.partition(": ")[2].strip())
    code = process.wait()
    return f"{name}: {next(iter(reasons), f'dvc repro ended with {code}')}" if code else None


def push(repo: Repo, names: Sequence[str]) -> None:
    """Gives the remote what these stages made, and DVC's run cache; nothing where the remote is the cache itself."""
    remote = repo.config["remote"][repo.config["core"]["remote"]]
    if remote["url"] != repo.cache.local_cache_dir:
        dvc(Path(repo.root_dir), "push", "--run-cache", *names)


def dvc(checkout: Path, *command: str) -> None:
    """Pulls, pushes or checks out with DVC. Raises RemoteError with its complaint."""
    command = (sys.executable, "-m", "dvc", *command)
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise RemoteError((said or ["it says nothing"])[0].removeprefix("ERROR: "))


@dataclass
class Patience:
    """Makes a call on the remote again, with longer and longer pauses, while it fails."""

    seconds: float
    tell: Tell
    retried: list[str] = field(default_factory=list)  # what succeeded in the end

    def __call__(self, what: str, call: Callable[[], Value]) -> Value:
        """What the call returns. Raises RemoteError once it has failed for that many seconds."""
        pause, start, failures = 1.0, time.monotonic(), 0
        while True:
            try:
                result = call()
            except Exception as error:  # each file system of DVC has errors of its own
                failures += 1
                reason = one_line(error)[:200]
                if time.monotonic() - start + pause > self.seconds:
                    raise RemoteError(f"{what} failed {failures} times, the last time with: {reason}") from error
                self.tell(f"{what} failed ({reason}); again in {pause:.0f} s")
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                if failures:
                    self.retried.append(f"{what}, {failures} times in {time.monotonic() - start:.0f} s")
                return result


def run(cfg: DictConfig) -> None:
    """Builds in this checkout what is stale of `cells`, shares what a plain `dvc repro` had built, fetches the rest.

    Of all other cells it fetches the figures, which a model card compares with.
    """
    repo = Repo()
    root, known = Path(repo.root_dir), read_lock(Path(repo.root_dir))
    if meeting_place(repo) is None:
        raise PipelineError("there is no DVC remote to share with; dvc repro builds without one")
    insist = Patience(cfg.fleet.patience, print)
    plan = Plan(repo, dict(known))
    names = plan.select(cfg.cells)
    insist("look-up", lambda: plan.stale(plan.stages))
    if mine := [name for name in names if name in known and name in plan.settled]:
        insist("push", lambda: push(repo, mine))
    for group in plan.groups(names).values():
        built = build(root, group.stages, read_lock(root), cfg.fleet.patience, print)
        if built.error:
            raise PipelineError(built.error)
    others = sorted(plan.settled - set(names))
    plan.save(others)
    wanted = [name for name in names if plan.is_cell(name)]
    for chosen in (plan.chosen(name) for name in others if wanted and name.startswith("smoke@")):
        wanted += ["/".join(["artifacts", chosen["variant"], chosen["precision"], figures]) for figures in FIGURES]
    if wanted:
        insist("pull", lambda: dvc(root, "pull", *wanted))


if __name__ == "__main__":
    main(run)
