"""Teacher forcing through the runtime's own loop: how often a device chooses the codes that a reference chose.

Free-running codes part for good at the first that flips, so they would say when, not how much, a device differs. Here
the talker is fed what the reference was fed, and each frame of the code predictor begins with the reference's first
code. The random numbers are the same, so what is chosen otherwise is due to weights and arithmetic.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3_tts_ov import Speech, Synthesizer
from qwen3_tts_ov.engine import Codes, Floats, Session


@dataclass
class Record:
    """One utterance: what the talker was fed in each call, [positions, width], and the codes [frames, groups]."""

    fed: list[Floats] = field(default_factory=list)
    codes: Codes = field(default_factory=lambda: np.empty((0, 0), np.int64))


class _Recording:
    """A session that notes what the talker is fed."""

    def __init__(self, session: Session, record: Record) -> None:
        self._session, self._record = session, record

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def talk(self, embeddings: Floats) -> tuple[Floats, Floats]:
        self._record.fed.append(embeddings.copy())
        return self._session.talk(embeddings)


class _Forced:
    """A session whose frames follow a record, whatever it would choose itself."""

    def __init__(self, session: Session, record: Record) -> None:
        self._session = session
        self._fed, self._first_codes = iter(record.fed), iter(record.codes[:, 0])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def talk(self, embeddings: Floats) -> tuple[Floats, Floats]:
        return self._session.talk(next(self._fed))

    def predict_frame(
        self, hidden: Floats, first_code: int, sampling: Mapping[str, NDArray[Any]]
    ) -> tuple[Codes, Floats]:
        codes, embedding = self._session.predict_frame(hidden, int(next(self._first_codes)), sampling)
        codes[0] = first_code  # its own choice is what is compared
        return codes, embedding


def record(synthesizer: Synthesizer, speak: Callable[..., Speech]) -> Record:
    """What a synthesizer says and what its talker was fed, for a text that is spoken in one piece."""
    made = Record()
    with _sessions(synthesizer, lambda session: _Recording(session, made)):
        made.codes = speak().codes
    return made


def agreement(synthesizer: Synthesizer, speak: Callable[..., Speech], reference: Record) -> dict[str, float]:
    """The share of codes chosen as the reference did: of all, and of those that the talker chooses, 0 to 1.

    Frames that are missing because the end token came too early count as different.
    """
    with _sessions(synthesizer, lambda session: _Forced(session, reference)):
        codes = speak(max_frames=len(reference.codes)).codes
    same = codes == reference.codes[: len(codes)]
    total, groups = reference.codes.shape
    return {"code_agreement": float(same.sum() / (total * groups)), "talker_agreement": float(same[:, 0].sum() / total)}


@contextmanager
def _sessions(synthesizer: Synthesizer, wrap: Callable[[Session], Any]) -> Iterator[None]:
    """Lets the synthesizer speak through wrapped sessions."""
    engine = synthesizer.engine
    original = engine.session

    @contextmanager
    def wrapped() -> Iterator[Any]:
        with original() as session:
            yield wrap(session)

    engine.session = wrapped  # type: ignore[method-assign]
    try:
        yield
    finally:
        del engine.session  # the class's own is back
