"""What a fleet runs on a node: a group, in a checkout of its own that is gone afterwards."""

import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import ray
from dvc.config import Config
from ray.util.queue import Queue

from pipeline.fleet.build_group import Built, build
from pipeline.fleet.plan import Entries, Plan, Settings
from pipeline.fleet.progress import Event, State
from pipeline.fleet.resources import scratch_root
from pipeline.stage import ROOT, PipelineError, one_line


def work(name: str, stages: Sequence[str], lock: Entries, settings: Settings, patience: float, events: Queue) -> Built:
    """Builds a group on the node that Ray chose, and puts an event in the queue for every step."""
    node = f"{socket.gethostname()}-{ray.get_runtime_context().get_node_id()[:4]}"

    def tell(text: str, state: State = State.WORKING) -> None:
        events.put(Event(name, state, text, node))

    tell("starts", State.STARTED)
    try:
        with scratch(settings) as checkout:
            built = build(Plan(checkout, lock), stages, patience, tell)
    except (PipelineError, OSError) as error:
        built = Built(error=f"{name}: {one_line(error)}")
    built.node = node
    return built


@contextmanager
def scratch(settings: Settings) -> Iterator[Path]:
    """A copy of the project as the driver has it, without anything built; Ray unpacked it where this module lies.

    What killed processes left is removed first: a checkout has the process id of its owner as name.
    """
    root = scratch_root()
    root.mkdir(mode=0o700, exist_ok=True)
    for left in root.glob("[0-9]*"):
        if not psutil.pid_exists(int(left.name)):
            shutil.rmtree(left, ignore_errors=True)
    checkout = root / str(os.getpid())
    try:
        shutil.copytree(ROOT, checkout, symlinks=True)
        with Config(str(checkout / ".dvc")).edit("local") as config:
            config.update(settings)
        yield checkout
    finally:
        shutil.rmtree(checkout, ignore_errors=True)
