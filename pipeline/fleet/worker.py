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
from ray.util.queue import Queue

from pipeline.fleet.build_group import Built, build
from pipeline.fleet.node import scratch_root
from pipeline.fleet.plan import Entries, Settings
from pipeline.stage import ROOT, PipelineError, one_line


def work(name: str, stages: Sequence[str], lock: Entries, settings: Settings, patience: float, events: Queue) -> Built:
    """Builds a group on the node that Ray chose; every step is an event `(group, node, what it does)`."""
    node = f"{socket.gethostname()}-{ray.get_runtime_context().get_node_id()[:4]}"

    def tell(what: str) -> None:
        events.put((name, node, what))

    tell("starts")
    try:
        with scratch(settings) as checkout:
            return build(checkout, stages, lock, patience, tell)
    except (PipelineError, OSError) as error:
        return Built(error=f"{name}: {one_line(error)}")


@contextmanager
def scratch(settings: Settings) -> Iterator[Path]:
    """A copy of the project as the driver has it, without anything built.

    Ray unpacked it where this module was imported from. What killed processes left is removed first; a lock that the
    system drops with the process tells it from what is at work.
    """
    root = scratch_root()
    root.mkdir(mode=0o700, exist_ok=True)
    with locked(root):
        for left in root.iterdir():
            clear(left)
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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits for, and holds, the lock of a directory."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def clear(folder: Path) -> None:
    """Removes a checkout unless a process is at work in it."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)
