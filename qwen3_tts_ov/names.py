"""Names of voices and languages as people and programs write them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# ISO 639-1 codes of the languages that released checkpoints know; a checkpoint's own names need no entry.
_LANGUAGES = {
    "de": "german",
    "en": "english",
    "es": "spanish",
    "fr": "french",
    "it": "italian",
    "ja": "japanese",
    "ko": "korean",
    "pt": "portuguese",
    "ru": "russian",
    "zh": "chinese",
}


def find(name: str, known: Iterable[str]) -> str | None:
    """The known name that is meant, else None: as it is written, or else without case, spaces, `_` and `-`."""
    names = list(known)
    return name if name in names else {_plain(each): each for each in reversed(names)}.get(_plain(name))


def find_language(name: str, known: Iterable[str]) -> str | None:
    """The known language that is meant, by its name or by its code, with or without a region (`en`, `en-US`)."""
    names = list(known)
    code = re.split("[-_]", name.strip().lower())[0]
    return find(name, names) or find(_LANGUAGES.get(code, ""), names)


def codes(known: Iterable[str]) -> list[str]:
    """The codes of those known languages that have one."""
    return sorted(code for code, name in _LANGUAGES.items() if name in set(known))


def near(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'ryan'?)`: the known name that is spelled most like an unknown one; nothing if none is close."""
    names = {_plain(each): each for each in known}
    close = difflib.get_close_matches(_plain(name), names, 1)
    return f" (did you mean {names[close[0]]!r}?)" if close else ""


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def short(name: str) -> str:
    """A name as messages show it: of a very long one its ends, since a path says most in its last part."""
    return name if len(name) <= 200 else f"{name[:60]} ... {name[-60:]} ({len(name)} characters)"
