"""The text vocabulary of Qwen3-TTS as files, vocab.json and merges.txt, from the BPE ranks.

The committed vocabulary is the rank file of Qwen's byte-level BPE (data/README.md): one token per
line, in the order of the merges. A rank file says which byte strings are tokens; merges.txt says which two tokens
each one came from. Running the BPE on a token with only the ranks below its own leaves exactly those two.
"""

import base64
import json
import lzma
from functools import cache
from itertools import pairwise
from pathlib import Path

RANKS = Path(__file__).parent / "data" / "qwen.tiktoken.xz"


def write(directory: Path) -> None:
    """Writes vocab.json and merges.txt, which equal the released files byte for byte."""
    for name, content in files().items():
        (directory / name).write_bytes(content.encode())


@cache
def files() -> dict[str, str]:
    """The content of each file."""
    spelling = printable_bytes()
    vocabulary = {"".join(spelling[byte] for byte in token): rank for rank, token in enumerate(ranks())}
    merges = (" ".join(halves(token, vocabulary)) + "\n" for token in vocabulary if len(token) > 1)
    compact = json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":"))
    return {"vocab.json": compact, "merges.txt": "".join(merges)}


def ranks() -> list[bytes]:
    """The tokens in the order of their ranks, which are their ids: first the 256 bytes, then what they merge into."""
    return [base64.b64decode(line.split()[0]) for line in lzma.decompress(RANKS.read_bytes()).splitlines()]


def halves(token: str, rank_of: dict[str, int]) -> list[str]:
    """Merges the characters of `token` by ascending rank until two parts are left; their merge alone has its rank."""
    parts = list(token)
    beyond = len(rank_of)
    while len(parts) > 2:
        pairs = [rank_of.get(left + right, beyond) for left, right in pairwise(parts)]
        i = min(range(len(pairs)), key=pairs.__getitem__)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def printable_bytes() -> tuple[str, ...]:
    """A visible character for each byte: Latin-1 if printable, else the next one from U+0100 up (GPT-2's table)."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return tuple(chr(byte if byte in visible else 0x100 + hidden.index(byte)) for byte in range(256))
