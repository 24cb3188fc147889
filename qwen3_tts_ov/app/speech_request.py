"""What a client asks for, in any of the spellings that programs send."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import RequestError
from ..request import Options
from ..synthesizer import FIRST_CHUNK

_Body = TypeVar("_Body", bound=BaseModel)


class VoiceRequest(BaseModel):
    """A voice to be saved."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    ref_audio: str
    ref_text: str | None = None
    model: str | None = None


class SpeechRequest(BaseModel):
    """The body of a request: OpenAI's fields, then those specific to this model."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: str
    model: str | None = None
    voice: str | None = None
    instructions: str | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: float = Field(1.0, ge=0.25, le=4, allow_inf_nan=False)
    stream_format: Literal["audio", "sse"] = "audio"

    ref_audio: str | None = None  # a recording to clone, as a data URL
    ref_text: str | None = None  # what it says

    language: str = "auto"
    first_chunk: int = FIRST_CHUNK
    seed: int | None = None
    max_frames: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _absent(cls, body: Any) -> Any:
        """Without the fields that are null or, but for the text, empty."""
        if not isinstance(body, dict):
            return body
        return {key: value for key, value in body.items() if value is not None and (value != "" or key == "input")}

    @field_validator("voice", mode="before")
    @classmethod
    def _name(cls, voice: Any) -> Any:
        """The name of a voice that is given as an object, as in `/v1/audio/voices`."""
        return voice["id"] if isinstance(voice, dict) and "id" in voice else voice

    @field_validator("response_format", "stream_format", mode="before")
    @classmethod
    def _in_any_case(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value

    def options(self) -> Options:
        """The request's generation options, by the runtime's names."""
        given = self.model_dump(include=set(Options.__annotations__), exclude_none=True)
        return Options(**given)  # type: ignore[typeddict-item]


def parse(kind: type[_Body], body: bytes) -> _Body:
    """Reads the JSON of a body. Raises RequestError for its first fault."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise RequestError(_explain(error, kind)) from None


def _explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first fault of a body, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"unknown field {place}; known: {', '.join(kind.model_fields)}"
    return f"{place}: {first['msg']}" if place else first["msg"]
