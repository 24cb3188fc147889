"""fleet: builds the matrix on many machines, which meet in the DVC remote; the engine is Ray.

    python -m pipeline.fleet                                  on this machine, several cells at once
    python -m pipeline.fleet cells='*-int8'                   what such cells need
    python -m pipeline.fleet address=192.0.2.1:6379           on a cluster (pipeline/fleet/node.py starts one)

Stale stages go out in groups (plan.py): first what the cells of a variant share, then each cell, to a node that has
what it needs (resources.py). A node gets the project as it is here, builds in a checkout of its own (worker.py) and
pushes. dvc.lock grows with every group that is done, so that a stopped fleet resumes where it was. Before a group goes
out, and once more on its node, the remote is asked whether another fleet has built it.
"""

import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from pipeline.fleet.build_group import Built, Patience, dvc, push
from pipeline.fleet.plan import Group, Plan
from pipeline.fleet.progress import Event, Progress, State
from pipeline.fleet.resources import describe, fits, needs, offers, wanted
from pipeline.stage import ROOT, PipelineError, main, one_line, write_json

REPORT, RAY_LOG = Path("build/fleet.json"), Path("build/ray.log")


def run(cfg: DictConfig) -> None:
    """Builds what is stale of `cells`, fetches the cells, writes the report. Raises PipelineError for a failure."""
    start = time.monotonic()
    plan, progress = Plan(ROOT), Progress(Console(file=sys.stdout))
    if cfg.address and plan.alone:
        raise PipelineError("no DVC remote for the cluster to meet in; dvc remote add --local --default NAME URL")
    names = plan.select(cfg.cells)
    fleet = Fleet(cfg, plan, progress)
    with progress.live:
        if stale := fleet.look_up(names):
            with snapshot() as project, cluster(cfg, project) as ray:
                fleet.build(stale, ray)
        plan.save()
        fleet.fetch([name for name in names if name in plan.settled])
    ran = sorted(name for built in fleet.built.values() for name in built.seconds)
    seconds = time.monotonic() - start
    report = {
        "stages": len(names),
        "stale": len(stale),
        "ran": ran,
        "groups": {name: {"node": built.node, "seconds": built.seconds} for name, built in fleet.built.items()},
        "retried": progress.retried,
        "failed": fleet.failed,
        "seconds": round(seconds, 1),
    }
    (ROOT / REPORT).parent.mkdir(exist_ok=True)
    write_json(ROOT / REPORT, report)
    fresh = len(names) - len(stale)
    print(f"{REPORT}: {len(names)} stages, {len(ran)} ran in {seconds:.0f} s, {fresh} were up to date")
    for line in progress.retried:
        print(f"retried: {line}")
    if fleet.failed:
        raise PipelineError("; ".join(f"{group}: {reason}" for group, reason in fleet.failed.items()))


class Fleet:
    """What is built of a plan, and how it goes."""

    def __init__(self, cfg: DictConfig, plan: Plan, progress: Progress) -> None:
        self.cfg, self.plan, self.progress = cfg, plan, progress
        self.built: dict[str, Built] = {}
        working = partial(Event, "this machine", State.WORKING, node=socket.gethostname())
        self.insist = Patience(cfg.fleet.patience, lambda text: progress.show(working(text)), progress.retried)

    @property
    def failed(self) -> dict[str, str]:
        """Why groups were not built; groups that do not need them go on."""
        return {name: built.error for name, built in self.built.items() if built.error}

    def look_up(self, names: Sequence[str]) -> list[str]:
        """Those of the stages that are stale."""
        return self.insist("look-up", lambda: self.plan.stale(names))

    def build(self, stale: list[str], ray: ModuleType) -> None:
        """Sends out group after group, each when those that it needs are over."""
        smoke_on = wanted(self.cfg.device, alive(ray))
        groups = self.plan.groups(stale, apart=["smoke", "layout_smoke"] if smoke_on else [])
        # What the nodes will ask for and this checkout has from a plain `dvc repro`.
        if shared := {earlier for name in stale for earlier in self.plan.before(name)} - set(stale):
            self.insist("push", lambda: push(self.plan, shared))
        for name in groups:
            self.progress.show(Event(name, State.WAITING, "waits"))
        order = TopologicalSorter({name: group.after for name, group in groups.items()})
        order.prepare()
        events, running = queue(ray), dict[Any, str]()
        while order.is_active():
            for name in order.get_ready():
                if task := self.send(groups[name], smoke_on, events, ray):
                    running[task] = name
                else:
                    order.done(name)
            over, _ = ray.wait(list(running), timeout=0.5) if running else ([], [])
            for event in events.get_nowait_batch(events.qsize()):
                self.progress.show(event)
            for task in over:
                self.receive(groups[running[task]], task, ray)
                order.done(running.pop(task))

    def send(self, group: Group, smoke_on: list[str], events: Any, ray: ModuleType) -> Any:
        """Submits a group as a task of Ray; None where it need not or cannot be built."""
        from pipeline.fleet.worker import work

        if lacking := sorted(group.after & self.failed.keys()):
            return self.end(group, Built(error=f"not built without {lacking[0]}"))
        if not self.look_up(group.stages):
            return self.progress.show(Event(group.name, State.OVER, "made elsewhere"))
        nodes = alive(ray)
        cpus = int(min(self.cfg.fleet.cpus, max(node.get("CPU", 0) for node in nodes)))
        asked = needs(group, self.plan.chosen(group.stages[0]), cpus, smoke_on)
        if not any(fits(asked, node) for node in nodes):
            return self.end(group, Built(error=f"no node has {describe(asked)}"))
        task = ray.remote(work).options(
            name=group.name,
            max_retries=self.cfg.fleet.lost,
            num_cpus=asked.pop("CPU"),
            memory=asked.pop("memory"),
            resources=asked,
        )
        patience = self.cfg.fleet.patience
        return task.remote(group.name, group.stages, self.plan.lock, self.plan.settings, patience, events)

    def receive(self, group: Group, task: Any, ray: ModuleType) -> None:
        """Takes in what a node says of a group, and finds in the remote what it made."""
        try:
            built: Built = ray.get(task)
        except ray.exceptions.RayError as error:
            built = Built(error=one_line(error))
        self.progress.retried += [f"{group.name}: {what}" for what in built.retried]
        if stale := self.look_up(group.stages):
            built.error = built.error or f"{stale[0]} was made from other sources than lie here"
        self.plan.save()
        self.end(group, built)

    def end(self, group: Group, built: Built) -> None:
        """Remembers what became of a group."""
        self.built[group.name] = built
        text = f"failed: {built.error}" if built.error else f"done in {sum(built.seconds.values()):.0f} s"
        self.progress.show(Event(group.name, State.OVER, text))

    def fetch(self, names: list[str]) -> None:
        """Puts the outputs of cells under artifacts/; where no remote is between, those of all stages."""
        if self.plan.alone:
            dvc(ROOT, "checkout", *names)
        elif cells := [name for name in names if "precision" in self.plan.chosen(name)]:
            self.insist("pull", lambda: dvc(ROOT, "pull", *cells))


@contextmanager
def snapshot() -> Iterator[Path]:
    """The project as it is here, edits included, with its commit and no other history: what a node builds from."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder, "project")
        git("clone", "--quiet", "--depth=1", "--no-checkout", ROOT.as_uri(), str(project))
        git("-C", str(project), "reset", "--quiet")
        for name in git("-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
            if name and (ROOT / name).is_file() and name != "dvc.lock":
                (project / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, project / name)
        yield project


def git(*arguments: str) -> str:
    """What git prints. Raises PipelineError with its complaint."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PipelineError(f"a fleet builds from a git checkout: {' '.join(done.stderr.split())}")
    return done.stdout


@contextmanager
def cluster(cfg: DictConfig, project: Path) -> Iterator[ModuleType]:
    """Ray, started on this machine alone or connected to `address`; its workers import from a copy of the project."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ["RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES"] = ""  # they would leave out .git
    if not cfg.address:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on Linux too: every port on loopback
    try:
        import ray
    except ModuleNotFoundError:
        raise PipelineError("Ray is not installed; pip install -c constraints.txt -e '.[fleet]'") from None
    alone: dict[str, Any] = {"address": "local", "resources": offers(), "include_dashboard": False}
    options = {"address": cfg.address} if cfg.address else alone
    options |= {"runtime_env": {"working_dir": str(project)}, "log_to_driver": False, "logging_level": logging.ERROR}
    (ROOT / RAY_LOG).parent.mkdir(exist_ok=True)
    with (ROOT / RAY_LOG).open("w") as log, redirect_stdout(log):
        try:
            ray.init(**options)
        except Exception as error:  # Ray raises nothing narrower where a machine is too busy to start it in time
            raise PipelineError(f"Ray, {cfg.address or 'on this machine'}: {one_line(error)}") from error
        try:
            yield ray
        finally:
            ray.shutdown()


def queue(ray: ModuleType) -> Any:
    """Where nodes put events; it lives on this node, so that it is lost with nothing but this process."""
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def alive(ray: ModuleType) -> list[dict[str, float]]:
    """What each node of the cluster has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


if __name__ == "__main__":
    main(run)
