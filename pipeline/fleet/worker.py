"""What a fleet runs on a node: a group, in a checkout of its own that is gone afterwards."""

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
from dvc.config import Config
from filelock import FileLock
from ray.util.queue import Queue

from pipeline.fleet.build_group import Built, build
from pipeline.fleet.plan import Entries, Settings
from pipeline.fleet.progress import Event, State
from pipeline.fleet.resources import scratch_root
from pipeline.stage import ROOT, PipelineError, one_line, unlocked


def work(name: str, stages: Sequence[str], lock: Entries, settings: Settings, patience: float, events: Queue) -> Built:
    """Builds a group on the node that Ray chose, and puts an event in the queue for every step."""
    node = f"{socket.gethostname()}-{ray.get_runtime_context().get_node_id()[:4]}"

    def tell(text: str, state: State = State.WORKING) -> None:
        events.put(Event(name, state, text, node))

    tell("starts", State.STARTED)
    try:
        with scratch(settings) as checkout:
            return build(checkout, stages, lock, patience, tell)
    except (PipelineError, OSError) as error:
        return Built(error=f"{name}: {one_line(error)}")


@contextmanager
def scratch(settings: Settings) -> Iterator[Path]:
    """A copy of the project as the driver has it, without anything built.

    Ray unpacked it where this module was imported from. What killed processes left is removed first: a checkout in use
    is locked, and the system releases the lock with the process.
    """
    root = scratch_root()
    root.mkdir(mode=0o700, exist_ok=True)
    with FileLock(f"{root}.lock"):
        for left in root.iterdir():
            if unlocked(left):
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=root))
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        checkout = folder / "checkout"
        shutil.copytree(ROOT, checkout, symlinks=True)
        with Config(str(checkout / ".dvc")).edit("local") as config:
            config.update(settings)
        yield checkout
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
