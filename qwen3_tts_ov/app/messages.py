"""What clients of any protocol are told of speech and of errors."""

from __future__ import annotations

import logging
from typing import Any

from ..errors import AudioError, Qwen3TTSError, RequestError, first_line
from ..speech import Outcome
from .desk import Busy, UnknownModel

log = logging.getLogger(__name__)


def facts(outcome: Outcome) -> dict[str, Any]:
    """How finished speech ended, and how fast it was made."""
    return {
        "stop_reason": outcome.stop_reason,
        "seed": outcome.seed,
        "first_audio_seconds": outcome.timings.first_audio,
        "real_time_factor": outcome.real_time_factor,
    }


def failure(error: Exception, what: str = "speech failed") -> tuple[int, str]:
    """The status and the message for an error; it is logged where this server, not its client, is to blame."""
    line = first_line(error)
    told = line if isinstance(error, (Qwen3TTSError, Busy)) else f"{type(error).__name__}: {line}"
    if isinstance(error, Busy):
        return 503, told
    if isinstance(error, (RequestError, AudioError)):
        return 404 if isinstance(error, UnknownModel) else 400, told
    log.error("%s: %s", what, told)
    return 500, told


def error(status: int, message: str) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"message": message, "type": kind, "param": None, "code": None}
