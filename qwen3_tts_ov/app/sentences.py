"""Sentences of a text that is still being written."""

from __future__ import annotations

from collections.abc import Iterable

from ..boundaries import Cut, boundaries
from ..errors import RequestError
from ..text import check, sentences

_AHEAD = 16  # characters after the end of a sentence that decide whether it is one ("No. 5", "2.5")


class Sentences:
    """Cuts a text into sentences while it arrives. Where it is cut does not depend on the parts that it arrives in:
    each decision is taken at a fixed length, and looks no further."""

    def __init__(self) -> None:
        self._rest, self._length = "", _AHEAD

    def add(self, part: str) -> list[str]:
        """The sentences that are complete now; those with nothing to speak are left out."""
        self._rest += part
        found = []
        while len(self._rest) >= self._length:
            cuts = boundaries(self._rest[: self._length]).items()
            at = next((at for at, cut in cuts if cut == Cut.SENTENCE and at <= self._length - _AHEAD), None)
            if at is None:
                self._length += max(_AHEAD, self._length // 4)  # grows, so that a text without an end costs little
            else:
                found.append(self._rest[:at])
                self._rest, self._length = self._rest[at:], _AHEAD
        return _spoken(found)

    def finish(self) -> list[str]:
        """The sentences of the rest: no more text follows."""
        rest, self._rest, self._length = self._rest, "", _AHEAD
        return _spoken(sentences(rest))


def _spoken(found: Iterable[str]) -> list[str]:
    return [sentence.strip() for sentence in found if _speaks(sentence)]


def _speaks(sentence: str) -> bool:
    try:
        check(sentence)
    except RequestError:
        return False
    return True
