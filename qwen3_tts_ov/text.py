"""What is spoken of a text, how long it takes, where to cut a long one, and the most frames that it may take.

Times rest on one rough estimate: seconds per character, by script. It is deliberately slow, as it bounds generation
and does not predict it.
"""

from __future__ import annotations

import math
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import idna
import regex

from .boundaries import Cut, boundaries, graphemes, phrases
from .errors import RequestError

# Seconds to speak one character. Digits and symbols are read out as words; punctuation is a pause.
_LETTER, _KANA, _SYLLABLE, _WORD, _PAUSE = 0.08, 0.18, 0.28, 0.45, 0.3

# Silence after a piece, in seconds, and how bad a cut is, by what is cut; no pause inside a phrase.
_PAUSES = {Cut.SENTENCE: 0.25, Cut.CLAUSE: 0.12}
_COST = {Cut.SENTENCE: 0.0, Cut.CLAUSE: 0.3, Cut.WORD: 1.0, Cut.PART: 2.0, Cut.NUMBER: 4.0, Cut.GRAPHEME: 4.0}

# A piece below this part of the limit sounds lost; the price of one.
_LEAST, _SHORT = 0.1, 2.5

# Unicode's grammar of emoji (UTS 51) with what is invisible in them; then terminal colours and all that is not heard.
_UNHEARD = regex.compile(
    r"""(?P<emoji> 🏴[\U000E0020-\U000E007E]+\U000E007F | \p{Emoji}[\uFE0E\uFE0F]\u20E3?(?!\u200d)
        | (?:\p{Extended_Pictographic}[\p{Emoji_Modifier}\uFE0F]?\u200d)+\p{Extended_Pictographic}\uFE0F? )
      | \x1b\[[0-?]*[ -/]*[@-~] | [[\p{Default_Ignorable_Code_Point}\p{Cc}\uFFF9-\uFFFB]--[\n\t]]""",
    regex.VERBOSE | regex.V1,
)
_BREAKS = regex.compile(r"\r\n?|[\v\f\x85\u2028\u2029]")
_SPACES = regex.compile(r"[\p{Zs}--\u3000]", regex.V1)

# The budget allows speech four times slower than the estimate, and five seconds for breath.
_SLOWEST, _BREATH = 4.0, 5.0


def seconds(text: str) -> float:
    """The time that a slow reader takes for `text`, in seconds."""
    return sum(map(_character_seconds, text))


def frame_budget(text: str, frames_per_second: float) -> int:
    """The most frames that `text` may take: 4 times a slow reader's time plus 5 seconds.

    Now and then the model misses its end token and would babble on; a normal reading stays far below this bound.
    """
    return int((_SLOWEST * seconds(text) + _BREATH) * frames_per_second) + 1


def clean(text: str) -> str:
    """The text without characters that cannot be heard, so that they are no tokens of their own.

    Unicode's default-ignorable characters (soft hyphens, byte order marks, direction marks, tags) and control
    characters are dropped. Joiners stay where the script's joining rules or an emoji need them, variation selectors
    and tags in emoji. Every line break becomes a newline, every space that is no tab or wide space a plain one.
    """
    return _SPACES.sub(" ", _UNHEARD.sub(_heard, _BREAKS.sub("\n", text)))


def check(text: str, name: str = "the text") -> None:
    """Raises RequestError unless `text`, called `name` in the message, contains something to speak."""
    if not isinstance(text, str):
        raise RequestError(f"{name} must be a string, not {type(text).__name__}")
    if any(unicodedata.category(character) == "Cs" for character in text):
        raise RequestError(f"{name} holds half of a surrogate pair; decode it as UTF-8 first")
    if not _speaks(clean(text)):
        raise RequestError(f"{name} has no letter, digit or symbol; there is nothing to speak")


class Piece(NamedTuple):
    """A part of a long text that is spoken by itself."""

    text: str
    pause: float  # of silence after it, in seconds


def split(text: str, limit: float) -> list[Piece]:
    """Pieces of at most `limit` seconds each and of even length; joined they are the text.

    They are cut after sentences if they can be, then after clauses, then after words: where the lengths would differ
    too much, or a rest would be too short to sound natural, the next weaker cut is taken. Punctuation is no piece of
    its own. A text within the limit stays one piece.
    """
    if seconds(text) <= limit:
        return [Piece(text, 0.0)]
    clock = [0.0, *accumulate(map(_character_seconds, text))]
    parts = [(0, Cut.SENTENCE), *_parts(text, limit, clock)]
    chosen = _even([clock[end] for end, _ in parts], [_COST[cut] for _, cut in parts], limit)
    ends = [parts[index] for index in chosen]
    pauses = [_PAUSES.get(cut, 0.0) for _, cut in ends[:-1]] + [0.0]
    starts = [0, *(end for end, _ in ends)]
    return [Piece(text[start:end], pause) for start, (end, _), pause in zip(starts, ends, pauses, strict=False)]


def sentences(text: str) -> Iterator[str]:
    """The sentences of `text` in any script, with the space after each; joined they are the text."""
    start = 0
    for end in [*(at for at, cut in boundaries(text).items() if cut == Cut.SENTENCE), len(text)]:
        if start < end:
            yield text[start:end]
        start = end


def _parts(text: str, limit: float, clock: list[float]) -> list[tuple[int, Cut]]:
    """The ends of the parts that pieces are made of, and what is cut there.

    A part is refined by weaker cuts while it is long: up to a third of the limit, so that pieces can become even, or
    the limit itself where a cut would divide what belongs together.
    """
    found: dict[Cut, list[int]] = {cut: [] for cut in Cut}
    for at, cut in boundaries(text).items():
        found[cut].append(at)
    third, ends = limit / 3, [(len(text), Cut.SENTENCE)]
    for cut, grain in zip(Cut, (0.0, third, third, limit, limit, limit), strict=True):
        refined, start = [], 0
        for end, kind in ends:
            if clock[end] - clock[start] > grain:
                within = found[cut][bisect_right(found[cut], start) : bisect_left(found[cut], end)]
                if cut == Cut.WORD:
                    within = sorted({*within, *(start + at for at in phrases(text[start:end]))})
                if cut == Cut.GRAPHEME:
                    within = [start + at for at in graphemes(text[start:end])]
                refined += [(at, cut) for at in _apart(within, start, end, clock, grain / 20)]
            refined.append((end, kind))
            start = end
        ends = refined
    return _speakable(text, ends)


def _apart(positions: list[int], start: int, end: int, clock: list[float], seconds: float) -> Iterator[int]:
    """Those of the positions between two others that are so far apart: closer cuts make no difference, only work."""
    for at in positions:
        if clock[at] - clock[start] >= seconds <= clock[end] - clock[at]:
            yield at
            start = at


def _speakable(text: str, ends: list[tuple[int, Cut]]) -> list[tuple[int, Cut]]:
    """The same parts, but marks alone belong to the part before them; those at the start to the first."""
    merged: list[tuple[int, Cut]] = []
    start = 0
    for end, cut in ends:
        if _speaks(text[start:end]) or not merged:
            if merged and not _speaks(text[: merged[0][0]]):
                merged.pop(0)
            merged.append((end, cut))
        else:
            merged[-1] = (end, cut)
        start = end
    return merged


def _even(clock: list[float], costs: list[float], limit: float) -> list[int]:
    """The indices at which to cut, the last included, so that pieces are even and cuts are good.

    `clock` are the times at the possible cuts, from 0 to the end; `costs` what each cut costs. The sum of the squared
    deviations from an even length, relative to the limit, and of these costs is the least possible (by dynamic
    programming); a piece under a tenth of the limit costs more than any cut between words.
    """
    target = clock[-1] / math.ceil(clock[-1] / limit)
    best, before = [0.0], [0]
    for j in range(1, len(clock)):
        least, at = math.inf, j - 1
        for i in range(j - 1, -1, -1):
            length = clock[j] - clock[i]
            if length > limit and i < j - 1:
                break
            cost = best[i] + ((target - length) / limit) ** 2 + _SHORT * (length < _LEAST * limit)
            if cost < least:
                least, at = cost, i
        best.append(least + costs[j])
        before.append(at)
    chosen, j = [], len(clock) - 1
    while j:
        chosen.append(j)
        j = before[j]
    return chosen[::-1]


def _speaks(text: str) -> bool:
    return any(unicodedata.category(character)[0] in "LNS" for character in text)


def _heard(found: regex.Match[str]) -> str:
    """What stays of an emoji, which is all of it, or of a character that is not heard."""
    if found["emoji"] is not None:
        return found[0]
    near, at = found.string[max(0, found.start() - 9) : found.end() + 9], min(found.start(), 9)
    return found[0] if found[0] in "\u200c\u200d" and idna.valid_contextj(near, at) else ""


@lru_cache(maxsize=8192)
def _character_seconds(character: str) -> float:
    category = unicodedata.category(character)
    code = ord(character)
    if category[0] == "L":
        if 0x3040 <= code < 0x3100 or 0x31F0 <= code < 0x3200:
            return _KANA
        wide = unicodedata.east_asian_width(character) in "WF"
        return _SYLLABLE if wide and not 0xFF00 <= code < 0xFFF0 else _LETTER
    if category[0] in "NS":
        return _WORD
    if character == "\n" or category[0] == "P":
        return _PAUSE
    return 0.0  # spaces, combining and control characters
