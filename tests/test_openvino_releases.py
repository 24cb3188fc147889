"""The oldest OpenVINO that a bundle asks for: written once, and it speaks as the newest does."""

import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks.openvino_releases import compared, releases, spoken
from pipeline.stage import ROOT, configuration

MINIMUM = configuration(()).minimum_openvino


def test_the_runtime_asks_for_the_release_that_bundles_ask_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"openvino>={MINIMUM}" in project["dependencies"]


@pytest.mark.prove
def test_the_oldest_and_the_newest_release_speak_the_same_codes_from_every_tiny_bundle(artifact):
    bundles = [
        artifact("bundle", f"tiny-{kind}", precision)
        for kind in ("base", "custom-voice", "voice-design")
        for precision in ("fp16", "int8", "int4")
    ]
    oldest = next(release for release in releases("9999.0.0") if release.startswith(f"{MINIMUM}."))
    assert compared(oldest, bundles, spoken(Path(sys.executable), bundles)) == "the same codes"
