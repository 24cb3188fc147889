"""Many voices in one pass over the weights: the steps that requests ask for at the same time run together.

A `Seat` is one request's place: `talker` and `code_predictor` take and give what an infer request of a batch of one
does, so a `Session` does not know that others speak beside it. No thread of its own: the first request that waits runs
the pass for all (the others sleep), and whatever came in meanwhile is the next pass.

A speech decoder keeps its state for each request, so it serves one at a time, or as many side by side as it has
streams, each on cores of its own. It takes its turn among the passes, because two graphs that run side by side on the
same cores wait for each other's threads.

The talker runs through OpenVINO's paged attention: its cache is one pool of blocks, so that prefills and steps of any
context lengths share a call. Every call has a dummy prefill of two positions. Where all sequences have one new
position and a context exceeds one block, the CPU plugin's logits depend on the batch in their last bits; beside a
prefill they do not, and are equal bit by bit whatever runs beside (docs/many-voices.md).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import Cancelled, DeviceError, RequestError
from .prefixes import Prefixes, digests

if TYPE_CHECKING:
    import openvino as ov

Arrays = Mapping[str, NDArray[Any]]
Infer = Callable[[str, "ov.InferRequest", Arrays], Arrays]

_GATHER_SECONDS = 0.005  # how long a pass waits for requests that are between two calls
_PREFILL = 512  # positions prefilled in one pass, at most, unless a single prompt has more: the others' frames wait
_SHARED = ("temperature", "top_k", "top_p")  # the code predictor's inputs that have no batch dimension
# In which calls are served. A request that comes back from its speech decoder wants the talker: so it joins the others'
# next step instead of costing a pass of its own.
_ORDER = ("code_predictor", "speech_decoder", "talker")
_POLL_SECONDS = 0.05  # between looks at whether a waiting request was cancelled


class Blocks:
    """The blocks of the talker's cache. A request reserves the most it may need, and takes blocks as it grows.

    What is reserved is always there to be taken, so a request that was admitted never runs out. The block that was
    given back last is taken first: memory that was never needed at once is never touched.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size  # blocks, positions in each
        self.unreserved = count
        self._free = list(reversed(range(count)))

    @property
    def free(self) -> int:
        """The blocks that hold nothing."""
        return len(self._free)

    def needed(self, positions: int) -> int:
        """The blocks that so many positions take."""
        return -(-positions // self.size)

    def take(self, count: int) -> list[int]:
        """So many free blocks. Raises DeviceError if there are fewer, which reserving prevents."""
        if count > len(self._free):
            raise DeviceError(f"talker: its cache is full ({self.count} blocks of {self.size} positions)")
        return [self._free.pop() for _ in range(count)]

    def give(self, blocks: list[int]) -> None:
        """Returns blocks; `blocks` is empty afterwards."""
        self._free += reversed(blocks)
        blocks.clear()


@dataclass(eq=False)
class Job:
    """A call that a request waits for."""

    seat: Seat
    inputs: Arrays
    result: Arrays | None = None
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.result is not None or self.error is not None


class Seat:
    """A request's place in the batch: blocks of the cache, and stand-ins for its infer requests.

    `decoder` is its own request of the speech decoder.
    """

    def __init__(self, batch: Batch, decoder: ov.InferRequest) -> None:
        self.blocks: list[int] = []
        self.past = 0  # positions in the cache
        self.decoder = decoder
        self.requests = {
            "talker": _StandIn(batch, self, "talker"),
            "code_predictor": _StandIn(batch, self, "code_predictor"),
            "speech_decoder": _DecoderStandIn(batch, self, "speech_decoder"),
        }


class _StandIn:
    """As much of an infer request as a session uses."""

    def __init__(self, batch: Batch, seat: Seat, name: str) -> None:
        self._batch, self._seat, self._name = batch, seat, name

    def infer(self, inputs: Arrays, share_outputs: bool = True) -> Arrays:
        return self._batch.run(self._name, self._seat, inputs)

    def reset_state(self) -> None:
        self._batch.clear(self._seat)


class _DecoderStandIn(_StandIn):
    """Only its calls take their turn: the state is the request's own."""

    def reset_state(self) -> None:
        self._seat.decoder.reset_state()

    def query_state(self) -> list[ov.VariableState]:
        return self._seat.decoder.query_state()


class Batch:
    """Collects what its seats ask for, and runs each kind of call once for all. Safe to share between threads.

    `slots` requests speak at a time; those that wait are admitted in the order in which they came. `predictors` are the
    code predictor's infer requests by batch size; `positions` is how many fit into the talker's cache; `streams` is how
    many requests of the speech decoder run side by side.
    """

    def __init__(
        self,
        slots: int,
        talker: ov.InferRequest,
        predictors: Mapping[int, ov.InferRequest],
        positions: int,
        infer: Infer,
        streams: int = 1,
    ) -> None:
        self.slots, self.passes, self.frames = slots, 0, 0
        self._decoders, self._side_by_side = streams, ThreadPoolExecutor(streams, "speech_decoder")
        self._talker = _PagedTalker(talker, positions, infer)
        self.blocks = self._talker.blocks
        self._predictors, self._infer = dict(sorted(predictors.items())), infer
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._admitted = 0
        self._pending: dict[str, list[Job]] = {name: [] for name in _ORDER}
        self._between: set[Seat] = set()  # were answered a moment ago, and will ask again
        self._running = False

    @property
    def speaking(self) -> int:
        """The requests that are admitted."""
        return self._admitted

    @property
    def waiting(self) -> int:
        """The requests that are not yet admitted."""
        return len(self._waiting)

    def check(self, positions: int) -> None:
        """Raises RequestError for more positions than the whole cache holds."""
        if positions > (most := self.blocks.count * self.blocks.size):
            raise RequestError(
                f"the request may take {positions} positions of the talker's cache, which holds {most}; lower "
                "max_frames, or shorten the text"
            )

    @contextmanager
    def admitted(self, positions: int, cancelled: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Waits for a slot and for blocks that hold `positions`, and keeps both.

        Raises RequestError as `check` does, Cancelled if `cancelled` ends the wait.
        """
        self.check(positions)
        needed = self.blocks.needed(positions)
        with self._changed:
            self._wait_for_turn(needed, cancelled)
            self._admitted += 1
            self.blocks.unreserved -= needed
        try:
            yield
        finally:
            with self._changed:
                self._admitted -= 1
                self.blocks.unreserved += needed
                self._changed.notify_all()

    def _wait_for_turn(self, needed: int, cancelled: Callable[[], bool]) -> None:
        ticket = object()
        self._waiting.append(ticket)
        try:
            while self._waiting[0] is not ticket or self._admitted == self.slots or needed > self.blocks.unreserved:
                if cancelled():
                    raise Cancelled("the request was cancelled")
                self._changed.wait(_POLL_SECONDS)
        finally:
            self._waiting.remove(ticket)
            self._changed.notify_all()

    def clear(self, seat: Seat) -> None:
        """Ends a seat's utterance: its blocks are free from now on."""
        with self._changed:
            self.blocks.give(seat.blocks)
            seat.past = 0
            self._between.discard(seat)
            self._changed.notify_all()

    def run(self, name: str, seat: Seat, inputs: Arrays) -> Arrays:
        """The result of a component's call for one seat. Runs passes, others' too, until it is there."""
        job = Job(seat, inputs)
        with self._changed:
            self._between.discard(seat)
            self._pending[name].append(job)
            self._changed.notify_all()
            try:
                while not job.done:
                    if self._running:
                        self._changed.wait()
                    elif self._between and not self._changed.wait_for(self._ready, _GATHER_SECONDS):
                        self._between.clear()
                    elif not job.done and not self._running:
                        self._pass()
            finally:
                if job in self._pending[name]:  # interrupted
                    self._pending[name].remove(job)
        if job.error is not None:
            raise job.error
        assert job.result is not None
        return job.result

    def _ready(self) -> bool:
        return self._running or not self._between

    def _pass(self) -> None:
        """Runs the next pass, without the lock."""
        name = next(name for name, jobs in self._pending.items() if jobs)
        jobs = self._choose(name)
        for job in jobs:
            self._pending[name].remove(job)
        self._running = True
        self._changed.release()
        try:
            self._serve(name, jobs)
        finally:
            self._changed.acquire()
            self._running = False
            self._between |= {job.seat for job in jobs}
            self._pending[name] += [job for job in jobs if not job.done]  # this thread was interrupted
            self.passes += name != "speech_decoder"  # which serves one, and reads weights of its own
            self.frames += len(jobs) if name == "code_predictor" else 0
            self._changed.notify_all()

    def _choose(self, name: str) -> list[Job]:
        """The pending calls that go together: equal sampling parameters, or not too many positions to prefill."""
        first, *others = self._pending[name]
        chosen = [first]
        if name == "code_predictor":
            alike = [job for job in others if all(np.array_equal(job.inputs[k], first.inputs[k]) for k in _SHARED)]
            return (chosen + alike)[: max(self._predictors)]
        if name == "speech_decoder":
            return (chosen + others)[: self._decoders]
        total = len(first.inputs["position_ids"][0])
        for job in others:
            total += (more := len(job.inputs["position_ids"][0]))
            if more == 1 or total <= _PREFILL:
                chosen.append(job)
        return chosen

    def _serve(self, name: str, jobs: Sequence[Job]) -> None:
        """Gives each call its result or its error. Calls that fail together are tried one by one."""
        if name == "speech_decoder" and len(jobs) > 1:
            list(self._side_by_side.map(lambda job: self._serve(name, [job]), jobs))
            return
        try:
            for job, result in zip(jobs, self._infer_together(name, jobs), strict=True):
                job.result = result
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].error = error
            else:
                for job in jobs:
                    self._serve(name, [job])

    def _infer_together(self, name: str, jobs: Sequence[Job]) -> list[Arrays]:
        if name == "talker":
            return self._talker([(job.seat, job.inputs["inputs_embeds"][0]) for job in jobs])
        if name == "speech_decoder":
            return [self._infer(name, job.seat.decoder, job.inputs) for job in jobs]
        size = next(size for size in self._predictors if size >= len(jobs))
        rows = [job.inputs for job in jobs] + [jobs[0].inputs] * (size - len(jobs))
        inputs = {
            key: value if key in _SHARED else np.concatenate([row[key] for row in rows])
            for key, value in rows[0].items()
        }
        found = self._infer(name, self._predictors[size], inputs)
        return [{key: found[key][at : at + 1].copy() for key in ("codes", "embeddings")} for at in range(len(jobs))]


class _PagedTalker:
    """The talker with a pool of blocks for all sequences."""

    def __init__(self, request: ov.InferRequest, positions: int, infer: Infer) -> None:
        import openvino as ov

        self._request, self._infer = request, infer
        model = request.get_compiled_model()
        caches = {port.any_name: port for port in model.inputs if "_cache." in port.any_name}
        shape = [size.get_length() for size in list(caches["key_cache.0"].partial_shape)[1:]]
        self.blocks = Blocks(-(-positions // shape[1]) + 1, shape[1])
        self._pools: list[NDArray[Any]] = []
        for name, port in caches.items():
            # numpy's zeros take no memory before they are written; the tensor does not keep them alive
            sizes = [size.get_length() for size in list(port.partial_shape)[1:]]
            pool = np.zeros([self.blocks.count, *sizes], port.element_type.to_dtype())
            self._pools.append(pool)
            # shared; numpy has no bf16, so the type must be said
            request.set_tensor(name, ov.Tensor(pool, list(pool.shape), port.element_type))
        self.prefixes = Prefixes(self._pools)
        self._dummy_blocks = self.blocks.take(1)
        self.blocks.count -= 1
        self.blocks.unreserved -= 1

    def __call__(self, items: Sequence[tuple[Seat, NDArray[np.float32]]]) -> list[Arrays]:
        """Logits [1, 1, vocabulary] and hidden [1, 1, width] of the last of each seat's new positions.

        The seats advance only if all goes well, so a failed call can be repeated.
        """
        for seat, new in items:
            missing = self.blocks.needed(seat.past + len(new)) - len(seat.blocks)
            seat.blocks += self.blocks.take(max(0, missing))
        prompts = {seat: digests(new) for seat, new in items if not seat.past and len(new) > 1}
        filled = {seat: self.prefixes.fill(seat.blocks, prompt) for seat, prompt in prompts.items()}
        dummy = np.zeros((2, items[0][1].shape[1]), np.float32)
        pasts = [*(filled.get(seat, seat.past) for seat, _ in items), 0]
        news = [*(new[filled.get(seat, 0) :] for seat, new in items), dummy]
        tables = [*(seat.blocks for seat, _ in items), self._dummy_blocks]
        ends = [past + len(new) for past, new in zip(pasts, news, strict=True)]
        inputs = {
            "inputs_embeds": np.concatenate(news),
            "position_ids": np.concatenate([np.arange(past, end) for past, end in zip(pasts, ends, strict=True)]),
            "past_lens": np.array(pasts, np.int32),
            "subsequence_begins": np.cumsum([0, *map(len, news)], dtype=np.int32),
            "block_indices": np.concatenate(tables).astype(np.int32),
            "block_indices_begins": np.cumsum([0, *map(len, tables)], dtype=np.int32),
            "max_context_len": np.array(max(ends), np.int32),
        }
        found = self._infer("talker", self._request, inputs)
        last = inputs["subsequence_begins"][1:-1] - 1
        for (seat, _), end in zip(items, ends, strict=False):
            seat.past = end
        for seat, prompt in prompts.items():
            self.prefixes.learn(seat.blocks, prompt)
        return [{key: found[key][at][None].copy() for key in ("logits", "hidden")} for at in last]
