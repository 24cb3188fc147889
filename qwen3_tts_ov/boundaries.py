"""Where a text may be cut: after sentences, clauses and words, never inside a number, a date, an address or a grapheme.

A boundary is judged by both sides. The rules serve the ten languages of the model at once, as a text may mix them and
its language is often not named; in doubt there is no boundary, since a long text has others.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from importlib import resources
from itertools import accumulate
from typing import TYPE_CHECKING

import regex

if TYPE_CHECKING:
    import budoux


class Cut(IntEnum):
    """What a cut follows, the best first."""

    SENTENCE = 0
    CLAUSE = 1
    WORD = 2
    PART = 3  # of something that belongs together: "4. Oktober", "Dr. Wu", "10 km"
    NUMBER = 4  # or of one number or date: "10 000", "2020. 5. 3."
    GRAPHEME = 5


# A run of marks with the closing marks and spaces after it, or a line break without a mark.
_MARKS = regex.compile(
    r"""(?P<mark>[.!?…‥。！？｡؟۔।॥]+|[,;:，、；：،؛—–～]+)
        (?P<close>["'”’“‘»›«‹」』）)\]】》〉*_]*(?:[ ]»(?=\s|$))?)
        (?P<space>\s*)
      | [^\S\n]*\n\s*""",
    regex.VERBOSE,
)
_SENTENCE = frozenset(".!?…‥。！？｡؟۔।॥")
_ELLIPSIS = regex.compile(r"\.{2,}|…+|‥+")
# Scripts without spaces, in which a mark ends a sentence without a space after it.
_CJK = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}ー。！？｡，、；：]")
# Between a character of theirs and a Latin word or an emoji; a number belongs to its counter.
_MIXED = regex.compile(
    r"(?<=[\p{Han}\p{Hiragana}\p{Katakana}])(?=[\p{Latin}\p{So}])|(?<=[\p{Latin}\p{So}])(?=[\p{Han}\p{Hiragana}\p{Katakana}])"
)
# Before a number in their texts, unless a date or a time goes on.
_BEFORE_CJK_NUMBER = regex.compile(r"(?<=[\p{Han}\p{Hiragana}\p{Katakana}])(?<![年月日号時时点分])(?=\d)")
# « Oui », but »Ja«.
_NEVER_FIRST = regex.compile(r"[,.;:!?…%”)\]}，。、；：！？」』）】》〉]|[»›’](?!\p{L})")
_NEVER_LAST = regex.compile(r"[(\[{„¿¡「『（【《〈]|(?<![\p{L}\p{P}])[«‹]")

# A date whose words are joined by spaces: "1 de enero de 2020", "the 4th of July".
_DATE = regex.compile(
    r"(?<![\d.,:])\d{1,2}(?:\.|º|\p{L}{2})?[ ](?:de|del|of|du|di)[ ](?!the\b)\p{L}+(?:[ ](?:de|del|of|du|di)[ ]\d+)?"
)

# A word and its full stop: an initial ("J. S. Bach", "M. Dupont"), letters between stops ("p.m.", "т.е.", "S.p.A."), a
# Roman numeral ("Ludwig XIV. war").
_SHORT = regex.compile(
    r"(?:^|[^\p{L}\p{N}])(?:[\p{Lu}\p{Ll}]|(?:\p{L}{1,4}\.-?)+\p{L}{1,2}|(?=[IVXLC])C{0,3}(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3}))$"
)
_WORD = regex.compile(r"\p{L}+$")
# Words that are abbreviations before a number: "No. 5", "Art. 3".
_BEFORE_NUMBER = regex.compile(
    r"(?i)(?:abs|abb|app|art|bd|cap|ch|chap|ed|eq|ex|fig|hab|lib|lit|kap|nos?|num|op|par|pos|ref|sec|tab|ver|vol|ziff)"
)
_NUMBER = regex.compile(r"(?:^|[\s(\[,;/–-])(\d{1,4})$")
_NUMBERS = regex.compile(r"\d(?:\.?\s\d++)+")
_YEAR = range(1100, 2100)
# German writes "am 4. Oktober" and "im 19. Jahrhundert": there a full stop after a number seldom ends the sentence.
_GERMAN = regex.compile(
    r"[äöüß]|\b(?:der|und|ist|dem|des|das|wurde|nicht|ein|eine|einen|vom|zum|zur|im|für|über|auf|mit|[Aa]m(?=\s\d))\b"
)
_GERMAN_MONTH = regex.compile(r"(?:Jan|Jän|Feb|März|Apr|Mai|Jun|Jul|Aug|Sep|Okt|Nov|Dez)")
_GERMAN_START = regex.compile(
    r"(?:Da|Danach|Dann|Das|Dem|Den|Der|Die|Dies\p{L}*|Doch|Ein\p{L}*|Er|Es|Ich|Ihr\p{L}*|Man|Nun|Sie|So|Und|Wir|Aber|Als|"
    r"Auch|Auf|Bei|Bis|Im|In|Mit|Nach|Seit|Um|Von|Vor|Was|Wenn|Wer|Wie|Wo|Zu|Zum|Zur)\b"
)


def boundaries(text: str) -> dict[int, Cut]:
    """The positions at which a text may be cut, in order, except inside words: each after the spaces there."""
    whole = set(graphemes(text))
    dates = [match.span() for match in _DATE.finditer(text)]
    found = {match.end(): Cut.PART if _joins(text, match) else Cut.WORD for match in regex.finditer(r"\s+", text)}
    found |= {match.start(): Cut.PART for match in _BEFORE_CJK_NUMBER.finditer(text)}
    found |= {match.end(): cut for match in _MARKS.finditer(text) if (cut := _after_marks(text, match)) is not None}
    found |= {at: Cut.PART for start, end in dates for at in range(start + 1, end) if at in found}
    numbers = {at for match in _NUMBERS.finditer(text) for at in range(match.start() + 1, match.end())}
    return {at: Cut.NUMBER if at in numbers else found[at] for at in sorted(found) if at in whole}


def phrases(text: str) -> list[int]:
    """The positions between words of Chinese or Japanese, found by a small model for line breaks."""
    if not _CJK.search(text):
        return []
    japanese = regex.search(r"[\p{Hiragana}\p{Katakana}]", text)
    found = set(accumulate(map(len, _parser("japanese" if japanese else "simplified_chinese").parse(text))))
    joined = {at for at in found if _CJK.match(text, at - 1) and _CJK.match(text, at)}
    mixed = {match.start() for match in _MIXED.finditer(text)}
    return sorted(at for at in (joined | mixed) & set(graphemes(text)) if not _NEVER_FIRST.match(text, at))


def graphemes(text: str) -> list[int]:
    """The positions between graphemes, which a reader sees as one character each."""
    return [match.end() for match in regex.finditer(r"\X", text)][:-1]


def _after_marks(text: str, found: regex.Match[str]) -> Cut | None:
    """What a cut after these marks follows; None where there is to be none."""
    start, at = found.span()
    mark, close, space = found["mark"], found["close"], found["space"]
    if at == len(text):
        return None
    if "\n\n" in text[start:at].replace(" ", ""):
        return Cut.SENTENCE
    if mark is None:
        return _after_line(text, start, at)
    wide = bool(_CJK.match(mark[-1]) or (_CJK.match(text, start - 1) and _CJK.match(text, at))) and start > 0
    if _NEVER_FIRST.match(text, at) or not (space or wide):
        return None
    if mark[0] not in _SENTENCE:
        between_digits = text[start - 1 : start].isdigit() and text[at].isdigit()
        return Cut.CLAUSE if not text[at].isdigit() else None if between_digits and not space else Cut.PART
    ellipsis = _ELLIPSIS.fullmatch(mark)
    if text[at].islower():
        return Cut.PART if mark == "." else Cut.CLAUSE
    if wide and not space and (close or ellipsis):  # 「行こう。」と言った
        return Cut.CLAUSE
    return Cut.PART if mark == "." and not close and _abbreviates(text, start, at) else Cut.SENTENCE


def _after_line(text: str, start: int, at: int) -> Cut:
    """A line without a mark at its end is a heading or a verse if it is short; a long one was wrapped."""
    line = text[text.rfind("\n", 0, start) + 1 : start]
    width = sum(2 if _CJK.match(character) else 1 for character in line)
    return Cut.WORD if text[at].islower() or width > 45 else Cut.SENTENCE


def _abbreviates(text: str, stop: int, after: int) -> bool:
    """Whether the full stop at `stop` belongs to the word or number before it and does not end the sentence."""
    before, numbered = text[max(0, stop - 20) : stop], text[after].isdigit()
    if number := _NUMBER.search(before):
        if numbered or _GERMAN_MONTH.match(text, after) or _opens(text, stop - len(number[1])):
            return True
        german = _GERMAN.search(text, max(0, stop - 300), after + 300) and not _GERMAN_START.match(text, after)
        return bool(german) and int(number[1]) not in _YEAR
    if _SHORT.search(before):
        return True
    word = _WORD.search(before)
    return word is not None and bool(
        word[0].lower() in _abbreviations() or (numbered and _BEFORE_NUMBER.fullmatch(word[0]))
    )


def _opens(text: str, number: int) -> bool:
    """Whether the number that starts there opens a sentence or a line, as in a list."""
    before = text[max(0, number - 3) : number].rstrip(" ")
    if before.endswith("."):
        return not _abbreviates(text, text.rindex(".", 0, number), number)
    return number == 0 or before.endswith(("\n", "!", "?", ":", ";"))


def _joins(text: str, space: regex.Match[str]) -> bool:
    """Whether a space is inside something that belongs together, or beside a mark that cannot stand alone."""
    start, at = space.span()
    if not 0 < start <= at < len(text):
        return True
    left, right = regex.search(r"\S*$", text[max(0, start - 20) : start])[0], text[at]
    beside = any(map(str.isdigit, left)) or left.endswith(".") or right.isdigit()
    return beside or bool(_NEVER_FIRST.match(text, at) or _NEVER_LAST.match(text, start - 1))


@cache
def _abbreviations() -> frozenset[str]:
    listed = resources.files(__package__).joinpath("abbreviations.txt").read_text(encoding="utf-8")
    return frozenset(word for line in listed.splitlines() if not line.startswith("#") for word in line.split())


@cache
def _parser(language: str) -> budoux.Parser:
    import budoux

    return getattr(budoux, f"load_default_{language}_parser")()
