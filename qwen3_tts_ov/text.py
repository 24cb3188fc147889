"""How long a text takes to speak, where to cut a long one, and the most frames that it may take.

All three rest on one rough estimate: seconds per character, by script. It is deliberately slow, as it bounds
generation and does not predict it.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache

from .errors import RequestError

# Seconds to speak one character. Digits and symbols are read out as words; punctuation is a pause.
_LETTER, _KANA, _SYLLABLE, _WORD, _PAUSE = 0.08, 0.18, 0.28, 0.45, 0.3

# A sentence ends after these and any closing marks that follow.
_SENTENCE = "。！？｡；؟۔।॥\n"
_CLAUSE = ",，、،:：—–"
_CLOSING = "\"'”’»›」』）)]】》"
# These end a sentence only before a space that no lower-case letter follows (so not in "3.14", "e.g. this",
# "'Why?' he said"); and a full stop does not after a likely title or initial ("Dr. Wu", "J. S. Bach").
_STOP = re.compile(r"[.!?…;]{1,9}[\"'”’»›)\]]*(\s(?!\s*[a-zà-öø-ÿа-я])|$)")
_ABBREVIATION = re.compile(r"(?<!\w)[A-ZÀ-ÖØ-ÞА-Я]\w{0,2}$")

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


def check(text: str, name: str = "the text") -> None:
    """Raises RequestError unless `text`, called `name` in the message, contains something to speak."""
    if not isinstance(text, str):
        raise RequestError(f"{name} must be a string, not {type(text).__name__}")
    if any(unicodedata.category(character) == "Cs" for character in text):
        raise RequestError(f"{name} holds half of a surrogate pair; decode it as UTF-8 first")
    if not any(unicodedata.category(character)[0] in "LNS" for character in text):
        raise RequestError(f"{name} has no letter, digit or symbol; there is nothing to speak")


def split(text: str, limit: float) -> list[str]:
    """Pieces of at most `limit` seconds each, cut at the strongest boundary possible.

    Whole sentences are packed together while they fit. A sentence over the limit is cut at clauses, then at spaces,
    then anywhere. A text within the limit stays one piece, unchanged.
    """
    if seconds(text) <= limit:
        return [text]
    pieces: list[str] = []
    open_parts: list[str] = []  # of the piece that is being filled
    used, speaks = 0.0, False
    for part in _parts(text, limit):
        cost, speakable = seconds(part), any(map(str.isalnum, part))
        if speaks and speakable and used + cost > limit:  # punctuation alone is no piece of its own
            pieces.append("".join(open_parts).strip())
            open_parts, used, speaks = [], 0.0, False
        open_parts.append(part)
        used, speaks = used + cost, speaks or speakable
    return [*pieces, "".join(open_parts).strip()]


def sentences(text: str) -> Iterator[str]:
    """The sentences of `text` in any script, with the space after each; joined they are the text."""
    return _cut(text, _ends_sentence)


def _parts(text: str, limit: float) -> Iterator[str]:
    """`text` in order, in parts that fit: sentences where they fit, smaller parts where they do not."""
    for sentence in sentences(text):
        if seconds(sentence) <= limit:
            yield sentence
            continue
        for clause in _cut(sentence, lambda text, i: text[i] in _CLAUSE):
            if seconds(clause) <= limit:
                yield clause
                continue
            for word in _cut(clause, lambda text, i: text[i].isspace()):
                yield from [word] if seconds(word) <= limit else _pieces(word, limit)


def _cut(text: str, ends: Callable[[str, int], bool]) -> Iterator[str]:
    """Cuts `text` after every index i where `ends(text, i)`, taking closing marks and then spaces along."""
    start = i = 0
    while i < len(text):
        end, i = ends(text, i), i + 1
        if end:
            while i < len(text) and (text[i] in _CLOSING or ends(text, i)):
                i += 1
            while i < len(text) and text[i].isspace():
                i += 1
            yield text[start:i]
            start = i
    if start < len(text):
        yield text[start:]


def _ends_sentence(text: str, i: int) -> bool:
    if not _STOP.match(text, i):
        return text[i] in _SENTENCE
    return text[i] != "." or not _ABBREVIATION.search(text, max(0, i - 5), i)


def _pieces(word: str, limit: float) -> Iterator[str]:
    """A word without any boundary, in pieces that fit."""
    start, used = 0, 0.0
    for i, character in enumerate(word):
        cost = seconds(character)
        if i > start and used + cost > limit:
            yield word[start:i]
            start, used = i, 0.0
        used += cost
    yield word[start:]


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
