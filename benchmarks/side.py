"""A side of a comparison: a process that loads once, then answers each JSON line with one, after speaking.

This module imports only the standard library, so that a worker can run in a different environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
Figures = dict[str, float]
Speak = Callable[..., Figures]

# A new text of ten words for each round, so that no side profits from having spoken it before.
TEXTS = (
    "The quick brown fox jumps over the lazy sleeping dog.",
    "Nobody in the village could say who had seen it.",
    "Every morning she walks along the river to the market.",
    "After the long winter, the children finally played outside again.",
    "Please leave your wet umbrella by the door before entering.",
    "His letter arrived on Tuesday with a rather strange stamp.",
    "Seven small boats came back to the harbour before dark.",
)
LANGUAGE = "english"


class SideError(Exception):
    """A side that cannot run here; the message says why."""


class Side:
    """The parent's end of a worker. Raises SideError when the worker cannot start or stops."""

    def __init__(self, command: Sequence[str]) -> None:
        # These would let idle threads spin during another side's turn.
        environment = {
            key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")
        }
        self._command = command
        self._folder = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about = self._read()

    @property
    def pid(self) -> int:
        return self._process.pid

    def speak(self, text: str, seed: int, frames: int) -> Figures:
        """The cost of one utterance, from text to WAV file, of `frames` frames unless it ends by itself earlier."""
        assert self._process.stdin is not None
        request = {"text": text, "seed": seed, "frames": frames, "wav": str(Path(self._folder.name, "speech.wav"))}
        with suppress(BrokenPipeError):  # reading reports what happened
            print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        """Ends the worker, which exits, with its children, when its stdin closes."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SideError(f"{' '.join(self._command[:4])} …: it ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self.close()
            raise SideError(answer["error"])
        return answer


def serve(load: Callable[[], tuple[Speak, dict[str, Any]]]) -> None:
    """The worker's end: loads, describes itself, and answers until stdin closes. Only answers go to stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to stdout

    def answer(data: Mapping[str, Any]) -> None:
        print(json.dumps(data), file=answers, flush=True)

    try:
        speak, about = load()
        answer(about)
        for line in sys.stdin:
            answer(speak(**json.loads(line)))
    except Exception as error:  # whatever it is, the comparison continues without this side and reports why
        answer({"error": f"{type(error).__name__}: {error}"})
