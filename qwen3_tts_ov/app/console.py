"""The outlets of a command's speech: a file, a player, stdout; progress is shown on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

if TYPE_CHECKING:
    from ..audio import Player, Writer
    from ..speech import Outcome, SpeechStream

Outlet: TypeAlias = "Writer | Player | _Stdout"

people = Console(stderr=True, highlight=False, soft_wrap=True)


def outlets_for(output: Path | None, play: bool, stream: bool, rate: int, inputs: Iterable[Path] = ()) -> list[Outlet]:
    """The chosen outlets, none of which overwrites an input. Raises AudioError for one that cannot work."""
    from .. import audio

    outlets: list[Outlet] = []
    if output is not None:
        outlets.append(audio.Writer(output, rate, inputs))
    if play:
        outlets.append(audio.Player(rate))
    if stream:
        outlets.append(_Stdout())
    return outlets


def pour(speech: SpeechStream, outlets: list[Outlet]) -> Outcome:
    """Writes the stream to every outlet, with progress on a terminal."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(speech)
        opened = [stack.enter_context(outlet) for outlet in outlets]
        for chunk in _with_progress(speech):
            for outlet in opened:
                outlet.write(chunk)
    return speech.outcome


class _Stdout(contextlib.nullcontext[Any]):
    """Raw PCM on stdout, flushed with every chunk."""

    def __enter__(self) -> _Stdout:
        return self

    def write(self, waveform: Any) -> None:
        from ..audio import pcm16

        sys.stdout.buffer.write(pcm16(waveform))
        sys.stdout.buffer.flush()


def _with_progress(speech: SpeechStream) -> Iterator[Any]:
    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=people, transient=True, disable=not people.is_terminal) as progress:
        task = progress.add_task("Speaking")
        samples = 0
        for chunk in speech:
            samples += len(chunk)
            seconds, elapsed = samples / speech.sample_rate, progress.tasks[task].elapsed or 0.0
            expected = max(seconds, speech.expected_seconds)
            left = timedelta(seconds=round((expected - seconds) * elapsed / seconds))
            told = f"{seconds:.1f} s spoken, real-time factor {elapsed / seconds:.2f}, about {left} left"
            progress.update(task, completed=seconds, total=expected, description=told)
            yield chunk
