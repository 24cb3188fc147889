"""The bundles of one server: loaded when they are first asked for, dropped when another one needs the memory."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

import anyio
from anyio import to_thread

from .. import memory
from ..bundle import Bundle
from ..errors import RequestError
from ..model import Model
from ..synthesizer import Synthesizer

# What a loaded bundle takes, beside its weights: measured are 1.2 GB after an utterance for 985 MB of weights, and
# 0.25 GB for 34 MB.
_PER_WEIGHT, _PER_BUNDLE = 1.2, 200_000_000

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Slip:
    """A bundle's place on the shelf."""

    model: Model
    names: frozenset[str]  # by which it is asked for, in lower case
    load: Callable[[], Synthesizer]
    bytes: int = 0  # that it is expected to take when it is loaded
    synthesizer: Synthesizer | None = None
    borrowers: int = 0  # requests that speak with it now, without those that wait for it
    used: int = 0  # when it was lent last, by the shelf's clock


class Shelf:
    """Models by name, of which as many are loaded as fit into `limit` bytes, or without one into the free memory.

    The first is the default. For a new one, those that were not used for the longest time are dropped; never one that
    is speaking, for whose end a new one waits. Raises RequestError for two of one name, or for one over the limit.
    """

    def __init__(self, slips: Iterable[Slip], limit: int | None = None) -> None:
        self.slips, self._limit = list(slips), limit
        self._clock = count(1)
        self._loading = anyio.Lock()  # one at a time, since each counts on memory that another would take
        self._returned = anyio.Event()  # replaced whenever one is given back
        self._short = False  # one waits for memory: newcomers queue behind it
        names = [slip.model.name for slip in self.slips]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise RequestError(f"two bundles are {twice}; serve one of them")
        for slip in self.slips:
            if limit is not None and slip.bytes > limit:
                raise RequestError(
                    f"{slip.model.name} takes about {slip.bytes / 1e9:.1f} GB of memory and --memory allows "
                    f"{limit / 1e9:.1f}; give it more"
                )

    @classmethod
    def of(cls, synthesizer: Synthesizer, aliases: Collection[str] = ()) -> Shelf:
        """A shelf with one model, which is loaded already."""
        model = synthesizer.model
        return cls([Slip(model, _names(model, aliases), lambda: synthesizer, synthesizer=synthesizer)])

    def find(self, name: str) -> Slip | None:
        """The place of a model by one of its names."""
        plain = name.strip().lower()
        return next((slip for slip in self.slips if plain in slip.names), None)

    def load_default(self) -> None:
        """Loads the default one, so that what it lacks is told at the start. Raises DeviceError, RequestError."""
        self.slips[0].synthesizer = self.slips[0].load()

    @asynccontextmanager
    async def lend(self, slip: Slip) -> AsyncIterator[Synthesizer]:
        """A model, loaded, that stays so during the `with` block. Raises DeviceError."""
        if slip.synthesizer is None or self._short:
            async with self._loading:
                slip.synthesizer = slip.synthesizer or await self._load(slip)
        slip.borrowers += 1
        slip.used = next(self._clock)
        try:
            yield slip.synthesizer
        finally:
            slip.borrowers -= 1
            self._returned.set()
            self._returned = anyio.Event()

    async def _load(self, slip: Slip) -> Synthesizer:
        while self._free() < slip.bytes:
            loaded = [each for each in self.slips if each.synthesizer is not None]
            if idle := [each for each in loaded if not each.borrowers]:
                oldest = min(idle, key=lambda each: each.used)
                log.info("dropping %s to make room", oldest.model.name)
                oldest.synthesizer = None
                await to_thread.run_sync(_give_back)
            elif loaded:
                self._short = True
                try:
                    await self._returned.wait()
                finally:
                    self._short = False
            else:
                break  # the system may find what it does not count as free
        log.info("loading %s", slip.model.name)
        return await to_thread.run_sync(slip.load)

    def _free(self) -> float:
        """The bytes that a new model may take."""
        if self._limit is not None:
            return self._limit - sum(each.bytes for each in self.slips if each.synthesizer is not None)
        import psutil  # type: ignore[import-untyped]

        return psutil.virtual_memory().available


def bundle_slip(bundle: Bundle, load: Callable[[], Synthesizer], aliases: Collection[str]) -> Slip:
    """The place of a bundle that is not loaded yet."""
    weights = sum(xml.with_suffix(".bin").stat().st_size for xml in bundle.model.graphs.values())
    names = _names(bundle.model, [*aliases, bundle.manifest["variant"], bundle.manifest["bundle_id"]])
    return Slip(bundle.model, names, load, round(_PER_WEIGHT * weights) + _PER_BUNDLE)


def _names(model: Model, aliases: Collection[str]) -> frozenset[str]:
    return frozenset(name.lower() for name in (model.name, *aliases))


def _give_back() -> None:
    """Gives the memory of what was dropped back to the system."""
    gc.collect()
    memory.trim()
