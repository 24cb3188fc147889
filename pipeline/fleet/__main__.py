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
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from dvc.repo import Repo
from omegaconf import DictConfig
from rich.console import Console

from pipeline.fleet.build_group import Built, Patience, dvc, push
from pipeline.fleet.plan import Group, Plan, Settings, meeting_place, own_cache, read_lock
from pipeline.fleet.progress import Event, Progress, State
from pipeline.fleet.resources import describe, fits, needs, offers, wanted
from pipeline.stage import ROOT, PipelineError, main, one_line, write_json

REPORT, RAY_LOG = Path("build/fleet.json"), Path("build/ray.log")


def run(cfg: DictConfig) -> None:
    """Builds what is stale of `cells`, fetches the cells, writes the report. Raises PipelineError for a failure."""
    start = time.monotonic()
    settings = meeting_place(repo := Repo(str(ROOT)))
    if cfg.address and settings is None:
        raise PipelineError("no DVC remote for the cluster to meet in; dvc remote add --local --default NAME URL")
    settings = settings or own_cache(repo)
    plan = Plan(Repo(str(ROOT), config=settings), read_lock(ROOT))
    names = plan.select(cfg.cells)
    with Progress(Console(file=sys.stdout)) as progress:
        fleet = Fleet(cfg, plan, settings, progress)
        stale = fleet.insist("look-up", lambda: plan.stale(names))
        if stale:
            with snapshot() as project, cluster(cfg, project) as ray:
                fleet.build(stale, ray)
        done = [name for name in names if name in plan.settled]
        plan.save(done)
        fleet.fetch(done)
    write_report(fleet, names, stale, time.monotonic() - start)
    if fleet.failed:
        raise PipelineError("; ".join(f"{group}: {reason}" for group, reason in fleet.failed.items()))


class Fleet:
    """What is built of a plan, and how it goes."""

    def __init__(self, cfg: DictConfig, plan: Plan, settings: Settings, progress: Progress) -> None:
        self.cfg, self.plan, self.settings, self.progress = cfg, plan, settings, progress
        self.built: dict[str, Built] = {}
        self.failed: dict[str, str] = {}
        self.insist = Patience(
            cfg.fleet.patience,
            lambda text: self.tell("this machine", State.WORKING, text, socket.gethostname()),
            progress.retried,
        )

    def tell(self, group: str, state: State, text: str, node: str = "") -> None:
        """Shows what happens to a group."""
        self.progress.show(Event(group, state, text, node))

    def build(self, stale: list[str], ray: ModuleType) -> None:
        """Sends out group after group, each when those that it needs are done."""
        smoke_on = wanted(self.cfg.device, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        waiting = self.plan.groups(stale, apart=["smoke"] if smoke_on else [])
        self.push(stale)
        for name in waiting:
            self.tell(name, State.WAITING, "waits")
        events, running = queue(ray), dict[Any, Group]()
        while waiting or running:
            at_work = {group.name for group in running.values()}
            for group in [group for group in waiting.values() if not group.after & (waiting.keys() | at_work)]:
                del waiting[group.name]
                if task := self.send(group, smoke_on, events, ray):
                    running[task] = group
            over, _ = ray.wait(list(running), timeout=0.5) if running else ([], [])
            for event in events.get_nowait_batch(events.qsize()):
                self.progress.show(event)
            for task in over:
                self.receive(running.pop(task), task, ray)

    def send(self, group: Group, smoke_on: list[str], events: Any, ray: ModuleType) -> Any:
        """Submits a group as a task of Ray; None where it need not or cannot be built."""
        from pipeline.fleet.worker import work

        if lacking := sorted(group.after & self.failed.keys()):
            return self.fail(group, f"not built without {lacking[0]}")
        if not self.insist("look-up", lambda: self.plan.stale(group.stages)):
            return self.tell(group.name, State.OVER, "made elsewhere")
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = int(min(self.cfg.fleet.cpus, max(node.get("CPU", 0) for node in nodes)))
        options = needs(group, self.plan.chosen(group.stages[0]), cpus, smoke_on)
        if not any(fits(options, node) for node in nodes):
            return self.fail(group, f"no node has {describe(options)}")
        known = {name: self.plan.lock[name] for name in self.plan.closure(group.stages) if name in self.plan.lock}
        task = ray.remote(work).options(name=group.name, max_retries=self.cfg.fleet.lost, **options)
        return task.remote(group.name, group.stages, known, self.settings, self.cfg.fleet.patience, events)

    def receive(self, group: Group, task: Any, ray: ModuleType) -> None:
        """Adds what a group made to dvc.lock."""
        try:
            built: Built = ray.get(task)
        except ray.exceptions.RayError as error:
            built = Built(error=one_line(error))
        self.built[group.name] = built
        self.progress.retried += [f"{group.name}: {what}" for what in built.retried]
        self.plan.lock |= built.entries
        stale = self.insist("look-up", lambda: self.plan.stale(built.entries))
        self.plan.save([name for name in built.entries if name not in stale])
        if built.error or stale:
            self.fail(group, built.error or f"{stale[0]} was made from other sources than lie here")
        else:
            self.tell(group.name, State.OVER, f"done in {sum(built.seconds.values()):.0f} s")

    def fail(self, group: Group, reason: str) -> None:
        """Remembers why a group was not built; groups that do not need it go on."""
        self.failed[group.name] = reason
        self.tell(group.name, State.OVER, f"failed: {reason}")

    def push(self, stale: list[str]) -> None:
        """Gives the nodes what they will ask for and this checkout has from a plain `dvc repro`."""
        makers = {self.plan.maker(str(ROOT / path)) for path in self.plan.inputs(stale)}
        if names := sorted({made[0] for made in makers if made} - set(stale)):
            self.insist("push", lambda: push(self.plan.repo, names))

    def fetch(self, names: list[str]) -> None:
        """Puts the outputs of cells under artifacts/; where no remote is between, those of all stages."""
        if "cache" in self.settings:
            dvc(ROOT, "checkout", *names)
        elif cells := [name for name in names if self.plan.is_cell(name)]:
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
    where = {"address": cfg.address} if cfg.address else alone
    (ROOT / RAY_LOG).parent.mkdir(exist_ok=True)
    with (ROOT / RAY_LOG).open("w") as log, redirect_stdout(log):
        try:
            ray.init(
                **where, runtime_env={"working_dir": str(project)}, log_to_driver=False, logging_level=logging.ERROR
            )
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


def write_report(fleet: Fleet, names: list[str], stale: list[str], seconds: float) -> None:
    """Writes build/fleet.json and prints what it comes to."""
    (ROOT / REPORT).parent.mkdir(exist_ok=True)
    ran = {name: spent for built in fleet.built.values() for name, spent in built.seconds.items()}
    groups = {
        name: {"node": fleet.progress.rows[name].node, "seconds": built.seconds} for name, built in fleet.built.items()
    }
    write_json(
        ROOT / REPORT,
        {
            "stages": len(names),
            "stale": len(stale),
            "ran": sorted(ran),
            "groups": groups,
            "retried": fleet.progress.retried,
            "failed": fleet.failed,
            "seconds": round(seconds, 1),
        },
    )
    print(
        f"{REPORT}: {len(names)} stages, {len(ran)} ran in {seconds:.0f} s, {len(names) - len(stale)} were up to date"
    )
    for line in fleet.progress.retried:
        print(f"retried: {line}")


if __name__ == "__main__":
    main(run)
