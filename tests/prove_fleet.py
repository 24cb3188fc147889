"""What a fleet promises, shown at the real parts: S3 on loopback, a Ray cluster of three nodes, every stage (`make prove`).

It takes a quarter of an hour on two cores and so is no part of `make test`, which finds only files named test_*.py.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.bundle import fingerprint, list_files, without_measured
from tests.conftest import dvc, new_checkout

os.environ |= {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's ports on loopback
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}

import boto3  # noqa: E402
import ray  # noqa: E402
from moto.server import ThreadedMotoServer  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

PORT = 5055
ENDPOINT = f"http://127.0.0.1:{PORT}"
NODE = {"num_cpus": 1, "memory": 4 * 10**9, "resources": {"disk": 20}}
MACHINE_FIGURES = ("SHA256SUMS", "provenance.intoto.json")  # hash the manifest, which tells commits apart


@pytest.fixture
def s3() -> Iterator[ThreadedMotoServer]:
    """An empty bucket."""
    server = ThreadedMotoServer("127.0.0.1", PORT, verbose=False)
    server.start()
    client = boto3.client("s3", endpoint_url=ENDPOINT)
    client.create_bucket(Bucket="artifacts")
    yield server
    client.close()
    server.stop()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head and two more nodes; each builds one group at a time."""
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture
def checkout(s3, tmp_path) -> Path:
    """A driver's checkout whose DVC remote is that bucket."""
    return with_remote(new_checkout(tmp_path / "driver"))


@pytest.fixture(scope="session")
def plain(tmp_path_factory) -> Path:
    """The checkout in which plain `dvc repro` built the whole matrix."""
    checkout = new_checkout(tmp_path_factory.mktemp("plain") / "repository")
    dvc(checkout, "repro")
    return checkout


def with_remote(checkout: Path) -> Path:
    dvc(checkout, "remote", "add", "--local", "--default", "s3", "s3://artifacts/fleet")
    dvc(checkout, "remote", "modify", "--local", "s3", "endpointurl", ENDPOINT)
    return checkout


class Fleet:
    """`python -m pipeline.fleet` in a process of its own, followed line by line."""

    def __init__(self, checkout: Path, cluster: Cluster, cells: str = "*") -> None:
        command = [sys.executable, "-m", "pipeline.fleet", f"cells={cells}", f"address={cluster.address}"]
        self.checkout, self.lines = checkout, list[str]()
        self.process = subprocess.Popen(
            [*command, "fleet.cpus=1"], cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        threading.Thread(target=self.follow, daemon=True).start()

    def follow(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            print(line, end="", flush=True)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first line that matches, as soon as it is there."""
        while True:
            for line in list(self.lines):
                if found := re.fullmatch(pattern, line):
                    return found
            assert self.process.poll() is None, "the fleet ended first"
            time.sleep(0.05)

    def report(self) -> dict:
        """What the fleet reports, after it has ended well."""
        assert self.process.wait(timeout=900) == 0, self.lines[-1]
        return json.loads((self.checkout / "build/fleet.json").read_text())


def assert_same(built: Path, plain: Path, folders: list[str]) -> None:
    """Every file of these folders has the same hash, reports but for times and memory."""
    compared = 0
    for folder in folders:
        made, expected = built / "artifacts" / folder, plain / "artifacts" / folder
        assert list_files(made) == list_files(expected), folder
        for name in list_files(made):
            compared += 1
            if name == "report.json":
                first, second = (without_measured(json.loads((root / name).read_text())) for root in (made, expected))
                assert first == second, f"{folder}/{name}"
            else:
                assert fingerprint(made / name) == fingerprint(expected / name), f"{folder}/{name}"
    print(f"{compared} files are the same")


def outputs(checkout: Path, cells: str = "") -> list[str]:
    """What the stages of dvc.lock made, under artifacts/."""
    lock = dvc(checkout, "ls", ".", "--dvc-only", "--recursive", "artifacts") if False else ""
    del lock
    import yaml

    stages = yaml.safe_load((checkout / "dvc.lock").read_text())["stages"]
    paths = [out["path"] for name, entry in stages.items() if cells in name for out in entry["outs"]]
    return [path.removeprefix("artifacts/") for path in paths]


def runs() -> Counter[str]:
    """How often each stage ran on any node of the last cluster, by what DVC said there."""
    logs = Path("/tmp/ray/session_latest/logs").glob("worker-*.out")
    return Counter(name for log in logs for name in re.findall(r"^Running stage '([^']+)'", log.read_text(), re.M))
