"""Every step of training at toy size, from sentences to a checkpoint that the networks load."""

import json
import subprocess
import sys

import pytest

from model_src.checkpoint import Checkpoint
from pipeline.stage import ROOT

pytest.importorskip("hibari", reason="training needs the extra train: pip install -c constraints.txt -e '.[train]'")
STEPS = ("corpus", "speech", "codec", "talker", "talker talker.acoustics=true", "respeak", "decoder", "checkpoint")


@pytest.mark.prove
def test_every_step_runs_and_the_last_writes_a_checkpoint(tmp_path):
    gloss = '00001740 03 n 01 entity 0 000 | a plain thing; "the old man told us a story number %d about the war"\n'
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text("".join(gloss % number for number in range(20)))
    for step in STEPS:
        name, *options = step.split()
        options += [f"work={tmp_path}/work", f"corpus.wordnet={tmp_path}"]
        done = subprocess.run(
            [sys.executable, "-m", f"training.{name}", "--config-name", "toy", *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{step}: {done.stderr}"
    Checkpoint(tmp_path / "work" / "checkpoint").verify()
    last = json.loads((tmp_path / "work" / "decoder.jsonl").read_text().splitlines()[-1])
    assert last["mel"] > 0
