"""`python -m qwen3_tts_ov` is the command `qwen3-tts-ov`."""

from .app.cli import app

app()
