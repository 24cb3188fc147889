"""Tests of a fleet with real parts: S3 on loopback, Ray on three nodes, the stages (`make prove`).

They take half an hour on two cores and set the environment of Ray and S3, so `make test`, which collects only
test_*.py, does not even import them.
"""

import json
import logging
import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.fleet.plan import read_lock
from pipeline.stage import fingerprint, list_files
from tests.conftest import dvc, make, new_checkout

os.environ |= {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's ports on loopback
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}

import boto3
import httpx2
from moto.server import ThreadedMotoServer
from ray.cluster_utils import Cluster

pytestmark = pytest.mark.prove
logging.getLogger("werkzeug").setLevel(logging.WARNING)  # one line per request
PORT = 5055
ENDPOINT = f"http://127.0.0.1:{PORT}"
NODE = {"num_cpus": 1, "memory": 4 * 10**9, "resources": {"disk": 20}}


@pytest.fixture
def s3() -> Iterator[ThreadedMotoServer]:
    """An empty bucket."""
    server = ThreadedMotoServer("127.0.0.1", PORT, verbose=False)
    server.start()
    httpx2.post(f"{ENDPOINT}/moto-api/reset").raise_for_status()  # servers of one process share their buckets
    client = boto3.client("s3", endpoint_url=ENDPOINT)
    client.create_bucket(Bucket="artifacts")
    yield server
    client.close()
    server.stop()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head node and two others; each builds one group at a time."""
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture
def checkout(s3, tmp_path) -> Path:
    """The driver's checkout, with that bucket as its DVC remote."""
    return with_remote(new_checkout(tmp_path / "driver"))


@pytest.fixture(scope="session")
def plain(tmp_path_factory) -> Callable[[str], Path]:
    """`plain("tiny-base-*")`: a checkout in which plain `dvc repro` has built the matching cells."""
    checkout = new_checkout(tmp_path_factory.mktemp("plain") / "repository")

    def get(cells: str) -> Path:
        dvc(checkout, "repro", "--glob", f"smoke@{cells}", f"score@{cells}")
        return checkout

    return get


def with_remote(checkout: Path) -> Path:
    dvc(checkout, "remote", "add", "--local", "--default", "s3", "s3://artifacts/fleet")
    dvc(checkout, "remote", "modify", "--local", "s3", "endpointurl", ENDPOINT)
    return checkout


class Fleet:
    """`python -m pipeline.fleet` in a process of its own, whose output is read line by line."""

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
        """The first line that matches, as soon as it is printed."""
        while True:
            for line in list(self.lines):
                if found := re.fullmatch(pattern, line):
                    return found
            assert self.process.poll() is None, "the fleet ended first"
            time.sleep(0.05)

    def report(self) -> dict:
        """The fleet's report, after it has succeeded."""
        assert self.process.wait(timeout=900) == 0, self.lines[-1]
        return json.loads((self.checkout / "build/fleet.json").read_text())


def assert_same(built: Path, expected: Path) -> None:
    """Asserts that all outputs of `built` have the same hashes, except metrics and plots: times and memory."""
    compared = 0
    for stage, entry in read_lock(built).items():
        for out in (out["path"] for out in entry["outs"] if not out["path"].endswith(".json")):
            assert list_files(built / out) == list_files(expected / out), stage
            for name in list_files(built / out):
                compared += 1
                assert fingerprint(built / out / name) == fingerprint(expected / out / name), f"{stage}: {name}"
    assert compared
    print(f"{compared} files are the same")


def runs(cluster: Cluster) -> Counter[str]:
    """How often each stage ran on any node, according to DVC's output there."""
    logs = Path(cluster.head_node.get_session_dir_path(), "logs").glob("worker-*.out")
    return Counter(name for log in logs for name in re.findall(r"^Running stage '([^']+)'", log.read_text(), re.M))


def test_a_cluster_builds_what_plain_dvc_builds_and_runs_each_stage_once(cluster, checkout, plain):
    report = Fleet(checkout, cluster).report()
    assert len(report["ran"]) == report["stages"] == 48
    assert report["retried"] == []
    assert set(runs(cluster).values()) == {1}
    assert sum(name.startswith(("download@", "export@")) for name in runs(cluster)) == 6
    assert len({group["node"] for group in report["groups"].values()}) == 3
    dvc(checkout, "pull")
    assert_same(checkout, plain("*"))

    before = runs(cluster)
    again = Fleet(checkout, cluster).report()
    assert (again["ran"], again["stale"]) == ([], 0)
    assert runs(cluster) == before

    other = with_remote(new_checkout(checkout.with_name("other")))  # it has only the remote
    found = Fleet(other, cluster).report()
    assert (found["ran"], found["stale"]) == ([], 0)
    assert runs(cluster) == before
    make(
        other,
        "publish",
        "VARIANT=tiny-base",
        "PRECISION=int8",
        "TO=publish.path=out publish.branch=nightly publish.tag=",
    )


def test_plain_dvc_in_a_clone_with_only_the_code_and_the_remote(checkout, plain):
    """Nothing runs; after an edit of one precision, only its column does."""
    built = plain("*")
    with_remote(built)
    dvc(built, "push", "--run-cache")
    clone = with_remote(new_checkout(checkout.with_name("clone")))
    said = dvc(clone, "repro", "--pull", "--allow-missing")
    assert "Running stage" not in said
    assert said.count("is cached - skipping run") == 48
    assert_same(clone, built)
    policy = clone / "conf/precision/int8.yaml"
    policy.write_text(policy.read_text() + "edited: 1\n")
    ran = re.findall(r"^Running stage '([^']+)'", dvc(clone, "repro", "--pull", "--allow-missing"), re.MULTILINE)
    variants = ("tiny-base", "tiny-custom-voice", "tiny-voice-design")
    stages = ("compress", "bundle", "smoke", "score")
    assert sorted(ran) == sorted(f"{stage}@{variant}-int8" for stage in stages for variant in variants)


def test_a_node_is_killed_during_the_build(cluster, checkout, plain):
    fleet = Fleet(checkout, cluster, "tiny-base-*")
    head = cluster.head_node.node_id[:4]
    found = fleet.wait_for(rf"(\S+) on \S+-(?!{head})(\w+): (compress|bundle|smoke)")
    [node] = [node for node in cluster.list_all_nodes() if node.node_id.startswith(found[2])]
    cluster.remove_node(node, allow_graceful=False)
    report = fleet.report()
    assert any(line.startswith(f"{found[1]}: lost with ") for line in report["retried"]), report["retried"]
    assert len(report["ran"]) == report["stages"] == 16
    assert runs(cluster)["download@tiny-base"] == runs(cluster)["export@tiny-base"] == 1
    dvc(checkout, "pull", *report["ran"])
    assert_same(checkout, plain("tiny-base-*"))


def test_s3_fails_for_half_a_minute(cluster, checkout, plain, s3):
    fleet = Fleet(checkout, cluster, "tiny-custom-voice-int8")
    fleet.wait_for(r"tiny-custom-voice on \S+: rollout")
    s3.stop()
    fleet.wait_for(r".* push failed \(.*")
    time.sleep(30)
    s3.start()
    report = fleet.report()
    assert re.match(r"tiny-custom-voice: push, \d+ times in \d+ s", report["retried"][0])
    assert set(runs(cluster).values()) == {1}, "nothing is rebuilt because of it"
    dvc(checkout, "pull", *report["ran"])
    assert_same(checkout, plain("tiny-custom-voice-int8"))


def test_two_concurrent_fleets_publish_the_same(cluster, checkout, plain):
    other = with_remote(new_checkout(checkout.with_name("other")))
    cells = "tiny-voice-design-int*"
    fleets = [Fleet(folder, cluster, cells) for folder in (checkout, other)]
    reports = [fleet.report() for fleet in fleets]
    twice = sorted(name for name, times in runs(cluster).items() if times > 1)
    print(f"of {reports[0]['stages']} stages {len(twice)} ran twice: {', '.join(twice)}")
    for folder in (checkout, other):
        dvc(folder, "pull", *reports[0]["ran"], *reports[1]["ran"])
        assert_same(folder, plain(cells))
    release = f"TO=publish.path={checkout.with_name('released')} publish.tag=v1"
    said = [
        make(folder, "publish", "VARIANT=tiny-voice-design", "PRECISION=int8", release) for folder in (checkout, other)
    ]
    assert "published already" in said[1], "a release is identified by its bundle id, whichever fleet publishes it"
    assert "published already" not in said[0]
