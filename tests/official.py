"""References for the parity tests: a checkpoint, and what the official package computed with it.

By default these are the tiny checkpoints and the golden values in tests/golden (from tests/reference/make_golden.py),
so that the tests run anywhere. `make parity` recomputes both at any size, and passes their folder in PARITY.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from model_src.checkpoint import Checkpoint
from model_src.generate import SpeechModel
from pipeline.bundle import write_tokenizer
from qwen3_tts_ov import prompt as prompts
from qwen3_tts_ov.prompt import Prompt

TESTS = Path(__file__).parent
SPEECH = TESTS / "data"
LIVE = Path(os.environ["PARITY"]).resolve() if "PARITY" in os.environ else None
GOLDEN = TESTS / "golden"
VARIANTS = sorted(path.parent.name for path in LIVE.glob("*/golden.npz")) if LIVE else sorted(
    path.stem for path in GOLDEN.glob("*.npz")
)  # fmt: skip
# Golden values of base checkpoints cover speech tokenizer and speaker encoder; those of custom voice, sampling.
BASE = [variant for variant in VARIANTS if variant.endswith("base")]
CUSTOM_VOICE = [variant for variant in VARIANTS if variant.endswith("custom-voice")]


@dataclass(frozen=True)
class Official:
    """A checkpoint and its golden values."""

    folder: Path
    golden: Mapping[str, np.ndarray]
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: Path, golden: Path, scratch: Path) -> Official:
        """Fails the test if the values were made from different files than the checkpoint's."""
        values = dict(np.load(golden, allow_pickle=False))
        for name, digest in json.loads(str(values["checkpoint"])).items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                pytest.fail(
                    f"{golden} was made from another {name} than {folder} holds; run `make golden`", pytrace=False
                )
        write_tokenizer(folder, scratch / "tokenizer.json")
        return cls(folder, values, Tokenizer.from_file(str(scratch / "tokenizer.json")))

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json; a small custom voice is declared large here, since the official model itself takes an
        instruction at any size."""
        return json.loads((self.folder / "config.json").read_text()) | {"tts_model_size": "1b7"}

    @cached_property
    def model(self) -> SpeechModel:
        return SpeechModel(self.checkpoint, self.config)

    def parsed(self, name: str) -> Any:
        """A golden value that is stored as JSON."""
        return json.loads(str(self.golden[name]))

    def parts(self, name: str) -> list[np.ndarray]:
        """A list of arrays that is stored end to end."""
        ends = np.cumsum(self.golden[f"{name}_lengths"])
        return np.split(self.golden[name], ends[:-1])

    def plan(self, case: Mapping[str, Any]) -> Prompt:
        """Our prompt for the request that the official code was given."""

        def tokenize(text: str) -> list[int]:
            return self.tokenizer.encode(text).ids

        request = {key: value for key, value in case.items() if key != "speak"}
        plans = {
            "custom_voice": prompts.custom_voice,
            "voice_design": prompts.voice_design,
            "base": prompts.clone_x_vector,
        }
        plan = prompts.clone_icl if "reference_text" in case else plans[self.config["tts_model_type"]]
        return plan(self.config, tokenize, **request)

    def voice(self, case: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The speaker vector and reference codes for a case's prompt."""
        if "x_vector" not in self.golden:
            return {}
        voice = {"speaker": torch.from_numpy(self.golden["x_vector"])}
        if "reference_frames" in case:
            voice["reference"] = torch.from_numpy(self.golden["reference_codes"][: case["reference_frames"]])
        return voice


def snr(expected: np.ndarray, found: np.ndarray) -> float:
    """Signal-to-noise ratio in dB."""
    noise = np.square(found.astype(np.float64) - expected).sum()
    return float(10 * np.log10(np.square(expected.astype(np.float64)).sum() / max(noise, 1e-30)))


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def assert_drawn_from(codes: np.ndarray, probabilities: np.ndarray) -> None:
    """A chi-square test at four standard deviations; bins with an expected count below five are pooled."""
    counts, expected = np.bincount(codes, minlength=len(probabilities)), probabilities.astype(np.float64) * len(codes)
    assert not counts[probabilities == 0].any()
    rare = expected < 5
    counts, expected = (np.append(values[~rare], values[rare].sum()) for values in (counts, expected))
    statistic = ((counts - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    freedom = len(counts) - 1
    assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)
