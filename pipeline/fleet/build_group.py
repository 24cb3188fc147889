"""group: builds the stale stages of one cell, or of what cells share, and meets other machines in the DVC remote.

    python -m pipeline.fleet.build_group cells=tiny-base        what the cells of a variant share
    python -m pipeline.fleet.build_group cells=tiny-base-int8   a cell; what it needs is pulled where others made it

Inputs are pulled, the stages run as `dvc repro` runs them, and what they made is pushed. A remote that fails is tried
again for `fleet.patience` seconds, without building anything twice.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dvc.repo import Repo
from omegaconf import DictConfig

from pipeline.fleet.plan import Entries, Plan, meeting_place, read_lock, write_lock
from pipeline.stage import ROOT, PipelineError, main, one_line

Value = TypeVar("Value")
Tell = Callable[[str], None]  # called with what is going on, a few words
FIGURES = {"bundle": "manifest.json", "smoke": "report.json"}
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

    def insist(what: str, call: Callable[[], Value]) -> Value:
        return patiently(what, call, patience, tell, built.retried)

    plan = Plan(Repo(str(checkout)), lock)
    tell("looks into the remote")
    stale = insist("look-up", lambda: plan.stale(stages))
    needed = plan.closure(stages)
    write_lock(checkout, {name: plan.lock[name] for name in needed if name in plan.lock})
    if stale:
        tell("pulls")
        if inputs := plan.inputs(stale):
            insist("pull", lambda: remote(checkout, "pull", *inputs))
        built.error = reproduce(checkout, stale, built.seconds, tell)
        plan.lock |= read_lock(checkout)
        done = [name for name in stale if name in built.seconds]
        tell("pushes")
        insist("push", lambda: remote(checkout, "push", *done))
        insist("push", lambda: plan.share(done))
    built.entries = {name: plan.lock[name] for name in stages if name not in stale or name in built.seconds}
    return built


def reproduce(checkout: Path, stages: Sequence[str], seconds: dict[str, float], tell: Tell) -> str | None:
    """Runs stages through DVC and enters how long each took; returns why one failed, in one line."""
    command = ["repro", "--single-item", "--allow-missing", *stages]
    process = subprocess.Popen(
        dvc(*command), cwd=checkout, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    running, start, reason = None, time.monotonic(), ""
    for line in process.stdout:
        print(line, end="", flush=True)
        if found := re.match(r"(?:Running stage|Stage) '([^']+)'", line):
            if running:
                seconds[running] = round(time.monotonic() - start, 1)
            running, start = found[1], time.monotonic()
            tell(running.partition("@")[0])
        elif line.startswith(("error: ", "ERROR: ")):
            reason = reason or line.partition(": ")[2].strip()
    if process.wait() == 0 and running:
        seconds[running] = round(time.monotonic() - start, 1)
        return None
    return f"{running or stages[0]}: {reason or f'dvc repro ended with {process.returncode}'}"


def remote(checkout: Path, *command: str) -> None:
    """Pulls or pushes with DVC. Raises RemoteError with what it complains of."""
    done = subprocess.run(dvc(*command), cwd=checkout, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise RemoteError((said or ["it says nothing"])[0].removeprefix("ERROR: "))


def patiently(what: str, call: Callable[[], Value], patience: float, tell: Tell, retried: list[str]) -> Value:
    """The result of a call on the remote, which is made again with longer and longer pauses while it fails.

    Raises RemoteError once it has failed for `patience` seconds.
    """
    pause, start, failures = 1.0, time.monotonic(), 0
    while True:
        try:
            result = call()
        except Exception as error:  # each file system of DVC has errors of its own
            failures += 1
            reason = one_line(error)[:200]
            if time.monotonic() - start + pause > patience:
                raise RemoteError(f"{what} failed {failures} times, last with: {reason}") from error
            tell(f"{what} failed ({reason}); again in {pause:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            if failures:
                retried.append(f"{what}, {failures} times in {time.monotonic() - start:.0f} s")
            return result


def dvc(*command: str) -> list[str]:
    """A DVC command of this environment."""
    return [sys.executable, "-m", "dvc", *command]


def environment() -> dict[str, str]:
    """This process's, with this environment's programs first: the stages call `python`."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def run(cfg: DictConfig) -> None:
    """Builds in this checkout what is stale of `cells`, shares what a plain `dvc repro` had built, fetches the rest.

    Of all other cells come the figures, which a model card compares with.
    """
    if "cache" in meeting_place(cfg):
        raise PipelineError("there is no DVC remote to share with; dvc repro builds without one")

    def insist(what: str, call: Callable[[], Value]) -> Value:
        return patiently(what, call, cfg.fleet.patience, print, [])

    plan, known = Plan(Repo(str(ROOT)), read_lock(ROOT)), read_lock(ROOT)
    names = plan.select(cfg.cells)
    insist("look-up", lambda: plan.stale(plan.stages))
    if mine := [name for name in names if name in known and name in plan.settled]:
        insist("push", lambda: remote(ROOT, "push", *mine))
        insist("push", lambda: plan.share(mine))
    for group in plan.groups(names).values():
        built = build(ROOT, group.stages, read_lock(ROOT), cfg.fleet.patience, print)
        if built.error:
            raise PipelineError(built.error)
    wanted = [name for name in names if plan.is_cell(name)]
    for name in sorted(plan.settled - set(names)) if wanted else ():
        if figures := FIGURES.get(name.partition("@")[0]):
            wanted.append(f"{plan.stages[name].outs[0].def_path}/{figures}")
    if wanted:
        insist("pull", lambda: remote(ROOT, "pull", *wanted))


if __name__ == "__main__":
    main(run)
