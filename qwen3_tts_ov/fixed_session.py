"""A session for graphs of fixed shapes without state, as an NPU takes them: what they remember is kept here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import DeviceError, boundary
from .session import Codes, Floats, Heard, Session, reason

if TYPE_CHECKING:
    import openvino as ov


class FixedSession(Session):
    """As Session, for a bundle of the npu layout. The sizes of a call are those of the graphs' ports.

    The talker's cache is the memory that the plugin allocated for the graph's inputs, and each call's new slots are
    written into it in place. The speech decoder returns its whole history: after a call, inputs and outputs exchange
    their tensors. So nothing is copied but the new slots, and a device never has to fetch its inputs from elsewhere.
    """

    def __init__(
        self, requests: Mapping[str, ov.InferRequest], mapped: Collection[Path] = (), heard: Heard | None = None
    ) -> None:
        super().__init__(requests, mapped, heard)
        talker, decoder = requests["talker"], requests["speech_decoder"]
        with boundary(DeviceError, "the graphs are not of the npu layout", reason):
            self._inputs: Floats = talker.get_tensor("inputs_embeds").data
            self._caches: dict[str, Floats] = _tensors(talker, "past_key_values")
            self._codes: Codes = decoder.get_tensor("codes").data
            self._history = list(_tensors(decoder, "past"))
        self._waiting: Codes
        for cache in self._caches.values():
            cache[:] = 0  # a slot that the mask hides still takes part in products, where NaN would spread
        self._forget()

    def new_utterance(self) -> None:
        self._position = 0
        self._forget()

    def talk(self, embeddings: Floats) -> tuple[Floats, Floats]:
        """As Session, in pieces of the graph's positions; the caller keeps within the cache."""
        counted_as, size = "talker" if self._position else "prefill", self._inputs.shape[1]
        for start in range(0, len(embeddings), size):
            piece = embeddings[start : start + size]
            self._inputs[0, : len(piece)] = piece  # what is left behind it has no influence on what comes before
            result = self._run("talker", {"filled": np.array([self._position])}, counted_as)
            self._remember(len(piece))
        last = len(piece) - 1
        return self._finite("talker", result["logits"][0, last]), result["hidden"][:, last : last + 1].copy()

    def decode(self, codes: Codes) -> Floats:
        """As Session. Frames that do not fill a call are decoded padded, and again when the frames after them fill it:
        padding must not become history."""
        frames, heard = self._codes.shape[2], len(self._waiting)
        codes = np.concatenate([self._waiting, codes])
        waveform: list[Floats] = []
        for start in range(0, len(codes), frames):
            call = codes[start : start + frames]
            self._codes[0, :, : len(call)] = call.T
            samples = self._run("speech_decoder", {"seen": np.array([self._seen])})["waveform"][0, 0]
            waveform.append(samples.reshape(frames, -1)[: len(call)].copy())
            if len(call) == frames:
                self._seen += frames
                self._exchange()
        self._waiting = codes[len(codes) - len(codes) % frames :]
        return np.concatenate(waveform)[heard:].reshape(-1)

    def _decoder_state(self) -> Any:
        decoder = self._requests["speech_decoder"]
        return {name: decoder.get_tensor(name).data.copy() for name in self._history}, self._waiting, self._seen

    def _set_decoder_state(self, kept: Any) -> None:
        history, self._waiting, self._seen = kept
        for name, values in history.items():
            self._requests["speech_decoder"].get_tensor(name).data[:] = values

    def _remember(self, positions: int) -> None:
        """Writes the slots that a call has added behind those that are filled."""
        request, end = self._requests["talker"], self._position + positions
        for name, cache in self._caches.items():
            added = request.get_tensor(name.replace("past_key_values", "present")).data
            cache[:, :, self._position : end] = added[:, :, :positions]
        self._position = end

    def _exchange(self) -> None:
        """Makes the history that a call returned the past of the next one."""
        decoder = self._requests["speech_decoder"]
        with boundary(DeviceError, "speech_decoder failed", reason):
            for name in self._history:
                returned = name.replace("past", "present")
                past, present = decoder.get_tensor(name), decoder.get_tensor(returned)
                decoder.set_tensor(name, present)
                decoder.set_tensor(returned, past)

    def _forget(self) -> None:
        """The decoder's history before an utterance: silence."""
        self._seen = 0
        self._waiting = np.empty((0, self._codes.shape[1]), np.int64)
        for name in self._history:
            self._requests["speech_decoder"].get_tensor(name).data[:] = 0


def _tensors(request: ov.InferRequest, prefix: str) -> dict[str, NDArray[np.float32]]:
    """The memory of the inputs whose names start with `prefix`."""
    names = [port.any_name for port in request.model_inputs if port.any_name.startswith(f"{prefix}.")]
    return {name: request.get_tensor(name).data for name in names}
