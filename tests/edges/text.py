"""Texts as people have them."""

from qwen3_tts_ov import text

from .case import Case


def cut(spoken: str, limit: float = 4.0):
    """The pieces of a text."""
    return lambda desk: " | ".join(text.split(spoken, limit))


CASES = [
    Case("a text file in Latin-1", lambda desk: said(desk, "Grüße.".encode("latin-1")), "it is not UTF-8 text"),
    Case("a text file", lambda desk: said(desk, b"Hello."), "speech"),
]


def said(desk, content: bytes) -> str:
    """The outcome of speaking a text file with this content."""
    (desk.folder / "text.txt").write_bytes(content)
    return desk.command("say {custom-voice} --file text.txt --max-frames 2")
