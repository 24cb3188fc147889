"""build_group: builds the stale stages of one cell, or of what cells share, and meets other machines in the DVC remote.

    python -m pipeline.fleet.build_group cells=tiny-base        what the cells of a variant share
    python -m pipeline.fleet.build_group cells=tiny-base-int8   a cell; what it needs is pulled where others made it

It is `dvc repro --pull --allow-missing` and `dvc push --run-cache`, without fetching what only tells that nothing is to
be done, and trying a remote that fails again for `fleet.patience` seconds, without building anything twice.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from omegaconf import DictConfig

from pipeline.fleet.plan import Plan
from pipeline.stage import PipelineError, main, one_line

Value = TypeVar("Value")
Tell = Callable[[str], None]  # called with what is going on, a few words
FIGURES = ("bundle/manifest.json", "metrics/smoke.json", "smoke/report.json")  # what a model card says of other cells
LONGEST_PAUSE = 15  # seconds between two tries of a remote


@dataclass
class Built:
    """What became of a group."""

    node: str = ""  # where
    seconds: dict[str, float] = field(default_factory=dict)  # of the stages that ran
    retried: list[str] = field(default_factory=list)  # what the remote refused at first
    error: str | None = None


def build(plan: Plan, stages: Sequence[str], patience: float, tell: Tell) -> Built:
    """Builds in the checkout of a plan those of the stages that are stale.

    A stage that fails is the result's `error`; what was made before it is pushed and kept. Raises PipelineError when
    the remote has failed for `patience` seconds.
    """
    built = Built()
    insist = Patience(patience, tell, built.retried)
    tell("looks into the remote")
    stale = insist("look-up", lambda: plan.stale(stages))
    plan.save()
    if inputs := plan.inputs(stale):
        tell("pulls")
        insist("pull", lambda: dvc(plan.root, "pull", *inputs))
    for name in stale:
        tell(name.partition("@")[0])
        start = time.monotonic()
        try:
            dvc(plan.root, "repro", "--single-item", "--allow-missing", name, echo=True)
        except PipelineError as error:
            built.error = f"{name}: {error}"
            break
        built.seconds[name] = round(time.monotonic() - start, 1)
    if built.seconds:
        tell("pushes")
        insist("push", lambda: push(plan, built.seconds))
    return built


def push(plan: Plan, names: Iterable[str]) -> None:
    """Gives the remote what these stages made, and DVC's run cache."""
    if not plan.alone:
        dvc(plan.root, "push", "--run-cache", *names)


def dvc(checkout: Path, *command: str, echo: bool = False) -> None:
    """Runs DVC. Raises PipelineError with the first complaint: that of a stage stands before DVC's own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", *command],
        cwd=checkout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    complaints = []
    for line in process.stdout:
        if echo:
            print(line, end="", flush=True)
        if line.lower().startswith("error: "):
            complaints.append(line.partition(": ")[2].strip())
    code = process.wait()
    # A push that could not transfer the run cache complains, and ends with 0 all the same (DVC 3.67).
    if code or (command[0] == "push" and complaints):
        raise PipelineError(next(iter(complaints), f"dvc {command[0]} ended with {code}"))


@dataclass
class Patience:
    """Makes a call on the remote again, with longer and longer pauses, while it fails."""

    seconds: float
    tell: Tell
    retried: list[str] = field(default_factory=list)  # what succeeded in the end

    def __call__(self, what: str, call: Callable[[], Value]) -> Value:
        """What the call returns. Raises PipelineError once it has failed for that many seconds."""
        pause, start, failures = 1.0, time.monotonic(), 0
        while True:
            try:
                result = call()
            except Exception as error:  # each file system of DVC has errors of its own
                failures += 1
                reason = one_line(error)[:200]
                if time.monotonic() - start + pause > self.seconds:
                    raise PipelineError(f"{what} failed {failures} times, the last time with: {reason}") from error
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
    plan = Plan(Path.cwd())
    if plan.alone:
        raise PipelineError("there is no DVC remote to share with; dvc repro builds without one")
    names, built_here = plan.select(cfg.cells), set(plan.lock)
    insist = Patience(cfg.fleet.patience, print)
    insist("look-up", lambda: plan.stale(plan.stages))
    plan.save()
    if mine := [name for name in names if name in built_here & plan.settled]:
        insist("push", lambda: push(plan, mine))
    for group in plan.groups(names).values():
        if error := build(Plan(plan.root), group.stages, cfg.fleet.patience, print).error:
            raise PipelineError(error)
    wanted = [name for name in names if "precision" in plan.chosen(name)]
    for chosen in (plan.chosen(name) for name in plan.settled - set(names) if wanted and name.startswith("smoke@")):
        wanted += ["/".join(["artifacts", chosen["variant"], chosen["precision"], figures]) for figures in FIGURES]
    if wanted:
        insist("pull", lambda: dvc(plan.root, "pull", *wanted))


if __name__ == "__main__":
    main(run)
