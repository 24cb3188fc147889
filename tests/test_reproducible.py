"""Two builds of one commit, each by DVC in a checkout and a cache of its own: not a byte differs."""

from pathlib import Path

import pytest

from pipeline.fleet.plan import read_lock
from pipeline.stage import fingerprint, list_files
from qwen3_tts_ov.bundle import Bundle
from tests.conftest import dvc, new_checkout

pytestmark = pytest.mark.prove


@pytest.fixture(scope="module")
def builds(built, tmp_path_factory) -> tuple[Path, Path]:
    """The checkout that all tests share, and another; each ran every stage of one cell."""
    second = new_checkout(tmp_path_factory.mktemp("second") / "repository")
    dvc(second, "repro", "smoke@tiny-custom-voice-int8")
    return built, second


def test_two_checkouts_of_one_commit_build_the_same_bundle_to_the_last_byte(builds):
    first, second = (checkout / "artifacts" / "tiny-custom-voice" / "int8" / "bundle" for checkout in builds)
    assert (first / "SHA256SUMS").read_text() == (second / "SHA256SUMS").read_text()
    ids = [Bundle.load(folder).manifest["bundle_id"] for folder in (first, second)]
    assert ids[0] == ids[1]


def test_the_same_inputs_give_the_same_outputs_so_that_nothing_after_them_reruns(builds):
    """Metrics and plots contain times and memory, so they differ; no stage depends on them."""
    first, second = builds
    entries, compared = read_lock(second), set()
    for entry in entries.values():
        for out in (out["path"] for out in entry["outs"] if Path(out["path"]).suffix != ".json"):
            assert list_files(first / out) == list_files(second / out)
            for name in list_files(first / out):
                assert fingerprint(first / out / name) == fingerprint(second / out / name), f"{out}/{name}"
            compared.add(Path(out).name)
    assert compared == {"checkpoint", "model", "ir", "rollout", "bundle", "smoke"}
    deps = [dep["path"] for entry in entries.values() for dep in entry["deps"]]
    assert not any("/metrics/" in dep or "/plots/" in dep for dep in deps)
