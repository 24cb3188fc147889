"""The loop: from planned prompts to frames of codes, from frames to chunks of speech."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice, repeat
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine import Engine
from .errors import Cancelled
from .prompt import Prompt
from .sampling import Sampling, TalkerSampler, exponential
from .session import Codes, Floats, Session
from .speech import Outcome, StopReason, Timings
from .voice import VoicePrompt

LARGEST_CHUNK = 16  # frames decoded in one call; 32 are 3 % faster and take 200 MB more
_PACE = 0.7  # of speech to the time of a slow reader, until a piece has been spoken
_SEAM_SECONDS = 0.005  # between two pieces without a pause
_DECAY_SECONDS = 0.001  # the time constant with which speech decays into a pause, so that no cut clicks


@dataclass(frozen=True)
class Request:
    """A checked request: only the device can fail from here on."""

    pieces: Sequence[tuple[Prompt, int, float]]  # each with its limit of frames and the pause after it in seconds
    voice: VoicePrompt | None
    seed: int
    talker: Sampling
    code_predictor: Sampling
    max_frames: int | None  # for all pieces together
    positions: int  # the most that a prompt and its speech may take
    reading: Sequence[float] = ()  # seconds that a slow reader takes for each piece
    ahead: int = 0  # the pieces that may be spoken while an earlier one is heard
    continued: bool = False  # the first piece draws a voice; the others' prompts hold its text, and go on after it
    cancelled: threading.Event = field(default_factory=threading.Event)  # once it is set, there is no further frame
    ends: list[int] = field(default_factory=list)  # the frame at which each piece ended; grows while they are spoken

    def expected_frames(self, frames_per_second: float) -> int:
        """About how many frames the speech will have: each piece that has ended shows how fast the voice speaks."""
        read, spoken = sum(self.reading[: len(self.ends)]), self.ends[-1] if self.ends else 0
        pace = spoken / read if read else _PACE * frames_per_second
        frames = round(spoken + pace * sum(self.reading[len(self.ends) :]))
        return frames if self.max_frames is None else min(frames, self.max_frames)


@dataclass(frozen=True)
class Opening:
    """The first piece of a text whose voice is drawn: the frames after which every other piece goes on."""

    codes: Codes  # [frames, code groups]
    embeddings: Floats  # [frames, width]


def speak(engine: Engine, request: Request, sizes: Iterator[int]) -> Generator[Floats, None, Outcome]:
    """Yields chunks of speech, float32 [samples], of `sizes` frames each; returns the outcome."""
    started = time.perf_counter()
    first_audio, waited, samples = 0.0, 0.0, 0
    pieces = _Pieces(engine, request, sizes)
    with closing(iter(pieces)) as chunks:
        for chunk in chunks:
            given = time.perf_counter()
            first_audio = first_audio or given - started
            samples += len(chunk)
            yield chunk
            waited += time.perf_counter() - given  # the time that the listener takes in between is not counted
    return Outcome(
        codes=pieces.codes,
        samples=samples,
        sample_rate=engine.model.sample_rate,
        stop_reason=pieces.stop_reason,
        seed=request.seed,
        timings=Timings(first_audio, time.perf_counter() - started - waited, dict(pieces.seconds), dict(pieces.calls)),
    )


def chunk_sizes(first: int) -> Iterator[int]:
    """Frames of each chunk: `first`, then twice as many each time up to `LARGEST_CHUNK` (or `first`, if larger)."""
    size = first
    while True:
        yield size
        size = max(first, min(2 * size, LARGEST_CHUNK))


class _Pieces:
    """A request being spoken: gives chunks of all its pieces with pauses between, and keeps their codes."""

    def __init__(self, engine: Engine, request: Request, sizes: Iterator[int]) -> None:
        self.stop_reason: StopReason = "eos"  # until a piece runs into its limit
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._engine, self._request, self._sizes = engine, request, sizes
        self._codes: list[Codes] = [np.empty((0, engine.model.config["talker_config"]["num_code_groups"]), np.int64)]

    @property
    def codes(self) -> Codes:
        """The frames spoken so far, [frames, code groups]."""
        return np.concatenate(self._codes)

    def __iter__(self) -> Generator[Floats, None, None]:
        last, pause = None, 0.0
        # How much is left of max_frames for a piece is known only once those before it have been spoken.
        ahead = self._request.ahead if self._request.max_frames is None else 0
        with _Ahead(ahead, self._request.cancelled, self._may_begin) as pool:
            for piece, after in pool.in_turn(self._planned()):
                if last is not None and piece.limit:
                    yield _pause(last, pause, self._engine.model.sample_rate)
                pause = after
                for frames, chunk in pool.chunks(piece):
                    self._codes.append(frames)
                    last = chunk[-1]
                    yield chunk
                for name, seconds in piece.seconds.items():
                    self.seconds[name] += seconds
                self.calls.update(piece.calls)
                self._request.ends.append(sum(map(len, self._codes)))
                if self.stop_reason == "eos":
                    self.stop_reason = piece.stop_reason

    def _may_begin(self) -> bool:
        """Whether further pieces may begin: an opening must have been spoken."""
        return not self._request.continued or bool(self._request.ends)

    def _planned(self) -> Iterator[tuple[_Piece, float]]:
        """The pieces, each with the pause after it."""
        sizes = self._sizes
        first: _Piece | None = None
        for prompt, limit, after in self._request.pieces:
            if self._request.max_frames is not None:
                limit = min(limit, self._request.max_frames - sum(map(len, self._codes)))
            opening = first.opening if first else None
            piece = _Piece(self._engine, self._request, prompt, max(0, limit), sizes, opening)
            first = first or piece
            yield piece, after
            if self._request.ahead:  # pieces that are spoken at once cannot share the growth of their chunks
                sizes = repeat(LARGEST_CHUNK)


class _Piece:
    """One piece: gives its frames, [frames, code groups], with their samples. Holds a session only meanwhile.

    It goes on after the frames of `opening`, if there is one; else, in a text whose pieces do so, it becomes that.
    """

    def __init__(
        self,
        engine: Engine,
        request: Request,
        prompt: Prompt,
        limit: int,
        sizes: Iterator[int],
        opening: Opening | None = None,
    ) -> None:
        self.limit = limit
        self.opening = opening
        self.stop_reason: StopReason = "max_frames"
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self._engine, self._request, self._sizes = engine, request, sizes
        self._prompt = prompt.after(len(opening.codes)) if opening else prompt

    def __iter__(self) -> Generator[tuple[Codes, Floats], None, None]:
        if not self.limit:
            return
        cancelled, positions = self._request.cancelled.is_set, len(self._prompt) + self.limit
        with self._engine.session(positions, cancelled) as session:
            config = self._engine.model.config
            utterance = Utterance(session, config, self._request, self._prompt, self.limit, self.opening)
            codes = []
            for frames in _batches(utterance, self._sizes):
                codes.append(frames)
                yield frames, session.decode(frames)
            if self._request.continued and self.opening is None:
                self.opening = Opening(np.concatenate(codes), np.concatenate(utterance.embeddings))
            self.stop_reason = utterance.stop_reason
            self.seconds, self.calls = dict(session.seconds), dict(session.calls)


class _Ahead:
    """Speaks up to `most` pieces in threads while an earlier one is heard; their chunks wait in memory.

    The first of them starts after the first chunk, which it would delay, and none before `may_begin` says so. Leaving
    sets `cancelled`, which ends them at their next frame, and waits for that.
    """

    def __init__(self, most: int, cancelled: threading.Event, may_begin: Callable[[], bool]) -> None:
        self._most, self._cancelled, self._may_begin = most, cancelled, may_begin
        self._lines: dict[_Piece, SimpleQueue[Any]] = {}
        self._planned: Iterator[tuple[_Piece, float]] = iter(())
        self._begun: deque[tuple[_Piece, float]] = deque()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._cancelled.set()
        for thread in self._threads:
            thread.join()

    def in_turn(self, planned: Iterator[tuple[_Piece, float]]) -> Iterator[tuple[_Piece, float]]:
        """The pieces, as they are to be heard."""
        self._planned = planned
        while (found := self._begun.popleft() if self._begun else next(planned, None)) is not None:
            yield found

    def chunks(self, piece: _Piece) -> Iterator[tuple[Codes, Floats]]:
        """The frames and samples of the piece that is heard now."""
        source: Iterable[Any] = iter(self._lines.pop(piece).get, None) if piece in self._lines else piece
        for found in source:
            if isinstance(found, BaseException):
                raise found
            self._begin()
            yield found

    def _begin(self) -> None:
        while self._may_begin() and len(self._begun) < self._most and (found := next(self._planned, None)) is not None:
            self._begun.append(found)
            line = self._lines[found[0]] = SimpleQueue()
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            self._threads.append(threading.Thread(target=self._speak, args=(found[0], line), daemon=True))
            self._threads[-1].start()

    def _speak(self, piece: _Piece, line: SimpleQueue[Any]) -> None:
        try:
            for chunk in piece:
                line.put(chunk)
            line.put(None)
        except BaseException as error:
            line.put(error)


class Utterance:
    """One piece being spoken: gives its frames, [code groups] each, and afterwards the reason why it stopped."""

    def __init__(
        self,
        session: Session,
        config: Mapping[str, Any],
        request: Request,
        prompt: Prompt,
        limit: int,
        opening: Opening | None = None,
    ) -> None:
        full = len(prompt) + limit >= request.positions
        self.stop_reason: StopReason = "cache_full" if full else "max_frames"
        self._session, self._prompt, self._voice, self._limit = session, prompt, request.voice, limit
        self._cancelled = request.cancelled
        self._spoken = opening.embeddings if opening else None
        self._reference = opening.codes if opening else request.voice.codes if request.voice else None
        self._is_opening = request.continued and opening is None
        self.embeddings: list[Floats] = []  # [1, width] of each frame, if it is an opening
        # Two streams of random numbers, so that neither depends on how many the other has drawn. Each piece restarts
        # them, and so does not depend on the others.
        talker, code_predictor = map(_generator, np.random.SeedSequence(request.seed).spawn(2))
        self._sampler = TalkerSampler(config, request.talker, talker)
        self._predictor = _PredictorInputs(config, request.code_predictor, code_predictor)

    def __iter__(self) -> Iterator[Codes]:
        session = self._session
        session.new_utterance()
        self._prime_decoder()
        prefill, text = session.embed(self._prompt, self._voice, self._spoken)
        logits, hidden = session.talk(prefill)
        for number in range(self._limit):
            first_code = self._sampler(logits)
            if first_code == self._sampler.end_id:
                self.stop_reason = "eos"
                return
            if self._cancelled.is_set():
                raise Cancelled("the request was cancelled")
            codes, embedding = session.predict_frame(hidden, first_code, self._predictor())
            if self._is_opening:
                self.embeddings.append(embedding.copy())
            yield codes
            if number + 1 < self._limit:
                logits, hidden = session.talk(embedding + text[min(number, len(text) - 1)])

    def _prime_decoder(self) -> None:
        """Feeds the reference or opening to the decoder, so that the speech continues from it; drops those samples."""
        if self._reference is None or self._session.resume_after(self._reference):
            return
        for frames in _batches(self._reference, chunk_sizes(LARGEST_CHUNK)):
            self._session.decode(frames)
        self._session.keep_after(self._reference)


class _PredictorInputs:
    """The code predictor's inputs for sampling; each call draws the noise of one frame."""

    def __init__(self, config: Mapping[str, Any], sampling: Sampling, rng: np.random.Generator) -> None:
        codebook = config["talker_config"]["code_predictor_config"]["vocab_size"]
        self._shape = (1, config["talker_config"]["num_code_groups"] - 1, codebook)
        self._rng = rng if sampling.do_sample else None
        self._fixed = {
            "noise": np.ones(self._shape, np.float32),  # none: the likeliest code wins
            "temperature": np.array([sampling.temperature], np.float32),
            "top_k": np.array([min(sampling.top_k or codebook, codebook)], np.int64),
            "top_p": np.array([sampling.top_p], np.float32),
        }

    def __call__(self) -> dict[str, NDArray[Any]]:
        if self._rng is None:
            return self._fixed
        return self._fixed | {"noise": exponential(self._rng, self._shape)}


def _generator(seed: np.random.SeedSequence) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def _batches(frames: Iterable[Codes], sizes: Iterator[int]) -> Iterator[Codes]:
    """Frames [code groups] batched to [frames, code groups] by `sizes`; the last batch may be shorter."""
    source = iter(frames)
    for size in sizes:
        if not (batch := list(islice(source, size))):
            return
        yield np.stack(batch)


def _pause(last: np.float32, seconds: float, rate: int) -> Floats:
    """A pause: the last sample before it decays into silence."""
    time_after = np.arange(1, round(max(seconds, _SEAM_SECONDS) * rate) + 1, dtype=np.float32) / rate
    return last * np.exp(-time_after / np.float32(_DECAY_SECONDS))
