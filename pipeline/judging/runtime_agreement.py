"""Teacher forcing through the runtime's own loop: what it said is recorded, and how often a device agrees with that.

Sequences that run freely diverge for good at the first code that differs, so they would show when a device differs, not
how much. Here the talker is fed what the reference was fed, and each frame of the code predictor begins with the
reference's first code. The random numbers are the same, so every difference is due to weights and arithmetic.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from pipeline.stage import PipelineError
from qwen3_tts_ov import Synthesizer
from qwen3_tts_ov.session import Codes, Floats, Session


@dataclass(frozen=True)
class Record:
    """One utterance: the inputs and outputs of each talker call, the first being the prefill, and the codes."""

    fed: list[Floats]  # [positions, width] each
    logits: list[Floats]  # [vocabulary] each
    hidden: list[Floats]  # [1, width] each
    codes: Codes  # [frames, groups]


class _Recorder(Session):
    """A session that appends the inputs, logits and hidden states of its talker to `calls`."""

    def __init__(self, calls: list[tuple[Floats, Floats, Floats]], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._talker_calls = calls

    def talk(self, embeddings: Floats) -> tuple[Floats, Floats]:
        logits, hidden = super().talk(embeddings)
        self._talker_calls.append((embeddings.copy(), logits.copy(), hidden[0].copy()))
        return logits, hidden


class _Forced(Session):
    """A session whose frames follow a record, whatever it would choose itself."""

    def __init__(self, record: Record, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._fed, self._first_codes = iter(record.fed), iter(record.codes[:, 0])

    def talk(self, embeddings: Floats) -> tuple[Floats, Floats]:
        return super().talk(next(self._fed))

    def predict_frame(
        self, hidden: Floats, first_code: int, sampling: Mapping[str, NDArray[Any]]
    ) -> tuple[Codes, Floats]:
        codes, embedding = super().predict_frame(hidden, int(next(self._first_codes)), sampling)
        codes[0] = first_code  # its own choice is what is compared
        return codes, embedding


def record(synthesizer: Synthesizer, text: str, **request: Any) -> Record:
    """Speaks a text and records it. Raises PipelineError for a text too long to be spoken in one piece."""
    calls: list[tuple[Floats, Floats, Floats]] = []
    speech = synthesizer.using(partial(_through(synthesizer, _Recorder), calls)).speak(text, **request)
    fed, logits, hidden = (list(part) for part in zip(*calls, strict=True))
    if sum(len(positions) > 1 for positions in fed) > 1:
        raise PipelineError(f"{text[:40]!r}…: too long to be spoken in one piece; shorten it")
    return Record(fed, logits, hidden, speech.codes)


def agreement(synthesizer: Synthesizer, reference: Record, **request: Any) -> dict[str, float]:
    """The share of codes that equal the reference's: of all codes, and of those that the talker chooses, 0 to 1.

    `request` is the one that was recorded. Frames missing because the end token came too early count as different.
    """
    forced = synthesizer.using(partial(_through(synthesizer, _Forced), reference))
    codes = forced.speak(**request | {"max_frames": len(reference.codes)}).codes
    same = codes == reference.codes[: len(codes)]
    total, groups = reference.codes.shape
    return {"code_agreement": float(same.sum() / (total * groups)), "talker_agreement": float(same[:, 0].sum() / total)}


def _through(synthesizer: Synthesizer, session: type[Session]) -> Callable[..., Session]:
    """The class of session given, over the one that this model's graphs need."""
    return type(session.__name__, (session, synthesizer.engine.session_class), {})
