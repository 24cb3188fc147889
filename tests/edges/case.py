"""A case at the edge of what people do: what is tried, how, and what must come out."""

import contextlib
import io
import logging
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qwen3_tts_ov import Qwen3TTSError, Synthesizer
from qwen3_tts_ov.app import cli

SPEECH = "speech"  # what came out where that is all there is to say


@dataclass(frozen=True)
class Case:
    """One row of the table.

    `do` is a command line of the program, or a function of the desk that returns what came out, in one line.
    `expected` are words that must be in what came out: "speech", or part of a one-line error.
    """

    name: str
    do: "str | Callable[[Desk], str]"
    expected: str


@dataclass
class Desk:
    """What a case has at hand: a folder of its own, which is also the current one, tiny bundles, compiled models."""

    folder: Path
    bundle: Callable[[str], Path]  # by kind: "base", "custom-voice", "voice-design"
    synthesizer: Callable[[str], Synthesizer]  # by kind
    names: dict[str, str] = field(default_factory=dict)  # the places that command lines name as {base}

    def outcome(self, case: Case) -> str:
        """What came out of a case, in one line: what it returned or its error, then the runtime's warnings."""
        with _warnings() as warned:
            try:
                came = self.command(case.do) if isinstance(case.do, str) else case.do(self)
            except Qwen3TTSError as error:
                came = f"error: {error}"
        assert "\n" not in came
        return self._spell("; ".join([came, *warned]))

    def command(self, line: str, stdin: bytes = b"") -> str:
        """Runs the program with a line of arguments; returns what it told on stderr, "speech" for its summary.

        An exception that the program lets through, and a user would see as a traceback, is let through here as well.
        """
        arguments = [word.format(**self.names) for word in shlex.split(line)]
        out, err, given = io.TextIOWrapper(io.BytesIO()), io.StringIO(), sys.stdin
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
            sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))
            try:
                cli.app(arguments)
            finally:
                sys.stdin = given
        told = re.sub(r"(\S+: )?[\d.]+ s of speech in .*", SPEECH, err.getvalue())
        return "; ".join(told.splitlines()) or SPEECH

    def _spell(self, came: str) -> str:
        """The same with names in place of temporary folders."""
        for name, place in self.names.items():
            came = came.replace(place, name)
        return came.replace(f"{self.folder}/", "").replace(str(self.folder), "the current folder")


@contextlib.contextmanager
def _warnings():
    """The messages that the runtime logs meanwhile."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("qwen3_tts_ov")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
