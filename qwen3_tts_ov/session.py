"""A session: the infer requests and decoder state of one utterance at a time."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import memory
from .errors import DeviceError, boundary
from .prompt import REFERENCE, SPEAKER, Prompt
from .voice import VoicePrompt

if TYPE_CHECKING:
    import openvino as ov

Floats = NDArray[np.float32]
Codes = NDArray[np.int64]

_VOICES = 8  # whose states are kept: 5 MB each for the released speech decoder


class Heard:
    """The speech decoder's states after the references that were used last, by their codes. Safe to share."""

    def __init__(self) -> None:
        self._states: dict[bytes, Any] = {}  # used last, last
        self._lock = threading.Lock()

    def get(self, reference: Codes) -> Any:
        """The state after a reference; None if it is not kept."""
        with self._lock:
            if (found := self._states.pop(key := reference.tobytes(), None)) is not None:
                self._states[key] = found
            return found

    def put(self, reference: Codes, state: Any) -> None:
        with self._lock:
            self._states[reference.tobytes()] = state
            while len(self._states) > _VOICES:
                del self._states[next(iter(self._states))]


class Session:
    """One utterance's infer requests: embeds its prompt, steps through its frames, decodes them. For one thread.

    `seconds` and `calls` count by component since the last `reset`; the talker's first call of an utterance counts as
    `prefill`. The resident pages of the `mapped` files are released after a component's first call. `heard` is shared
    with the other sessions of the same graphs.
    """

    def __init__(
        self, requests: Mapping[str, ov.InferRequest], mapped: Collection[Path] = (), heard: Heard | None = None
    ) -> None:
        self._requests = requests
        self._mapped = mapped
        self._heard = heard or Heard()
        self._ran: set[str] = set()
        self._position = 0
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: defaultdict[str, int] = defaultdict(int)

    def reset(self) -> None:
        """Clears utterance and counts; memory stays reserved for the next utterance."""
        self.new_utterance()
        self.seconds.clear()
        self.calls.clear()

    def new_utterance(self) -> None:
        """Empties the talker's cache and the speech decoder's state."""
        self._position = 0
        for name in ("talker", "speech_decoder"):
            with boundary(DeviceError, f"{name} failed", reason):
                self._requests[name].reset_state()

    def embed(self, prompt: Prompt, voice: VoicePrompt | None, spoken: Floats | None = None) -> tuple[Floats, Floats]:
        """The prefill [positions, width] and the text to feed alongside the frames [trailing + 1, width].

        The last of those rows is the padding that is fed once the text has ended. `spoken` [frames, width] are the
        embeddings of a prompt's reference frames, where they are not the voice's.
        """
        text_ids = np.array([*prompt.text_ids, *prompt.trailing_text_ids, prompt.pad_text_id])
        codec_ids = np.array(prompt.codec_ids)
        text = self._rows("text_embedding", text_ids)
        prefill, following = text[: len(prompt)].copy(), text[len(prompt) :]
        prefill += self._rows("codec_embedding", codec_ids)
        if voice is not None:
            prefill[codec_ids == SPEAKER] += voice.x_vector
            if voice.codes is not None:
                prefill[codec_ids == REFERENCE] += self._reference(voice.codes)
        if spoken is not None:
            prefill[codec_ids == REFERENCE] += spoken
        return prefill, following

    def talk(self, embeddings: Floats) -> tuple[Floats, Floats]:
        """Feeds [positions, width] to the talker; returns logits [vocabulary], hidden [1, 1, width] of the last."""
        positions = np.arange(self._position, self._position + len(embeddings), dtype=np.int64)
        self._position += len(embeddings)
        inputs: dict[str, NDArray[Any]] = {
            "inputs_embeds": embeddings[None],
            "position_ids": positions[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        result = self._run("talker", inputs, counted_as="talker" if positions[0] else "prefill")
        return self._finite("talker", result["logits"])[0, 0], result["hidden"]

    def predict_frame(
        self, hidden: Floats, first_code: int, sampling: Mapping[str, NDArray[Any]]
    ) -> tuple[Codes, Floats]:
        """A frame's codes [code groups] and their summed embedding [1, width], for the next talker step.

        `sampling` holds the graph's noise, temperature, top_k and top_p.
        """
        first = np.array([[first_code]], np.int64)
        result = self._run("code_predictor", {"talker_hidden": hidden, "first_code": first, **sampling})
        return result["codes"][0].copy(), self._finite("code_predictor", result["embeddings"])[0]

    def decode(self, codes: Codes) -> Floats:
        """The samples of the next frames [frames, code groups], float32 [frames * samples per frame]."""
        return self._run("speech_decoder", {"codes": codes.T[None]})["waveform"][0, 0].copy()

    def resume_after(self, reference: Codes) -> bool:
        """Sets the speech decoder to its state after a reference [frames, code groups]; False if it is not kept."""
        if (kept := self._heard.get(reference)) is None:
            return False
        with boundary(DeviceError, "speech_decoder failed", reason):
            self._set_decoder_state(kept)
        return True

    def keep_after(self, reference: Codes) -> None:
        """Keeps the speech decoder's state, once it was fed a reference and nothing else, for `resume_after`."""
        with boundary(DeviceError, "speech_decoder failed", reason):
            self._heard.put(reference, self._decoder_state())

    def _decoder_state(self) -> Any:
        return {state.name: state.state.data.copy() for state in self._requests["speech_decoder"].query_state()}

    def _set_decoder_state(self, kept: Any) -> None:
        import openvino as ov

        for state in self._requests["speech_decoder"].query_state():
            state.state = ov.Tensor(kept[state.name])

    def _reference(self, codes: Codes) -> Floats:
        """The summed code embeddings of every frame, [frames, width]."""
        first = self._run("codec_embedding", {"token_ids": codes[None, :, 0]})["embeddings"][0].copy()
        return first + self._run("residual_code_embedding", {"codes": codes[None, :, 1:]})["embeddings"][0]

    def _rows(self, name: str, ids: NDArray[np.int64]) -> Floats:
        """Rows of an embedding table [ids, width], zero where an id is a placeholder."""
        real = ids >= 0
        found = self._run(name, {"token_ids": ids[None, real]})["embeddings"][0]
        rows = np.zeros((len(ids), found.shape[1]), np.float32)
        rows[real] = found
        return rows

    def _run(
        self, name: str, inputs: Mapping[str, NDArray[Any]], counted_as: str | None = None
    ) -> Mapping[str, NDArray[Any]]:
        start = time.perf_counter()
        result = infer(name, self._requests[name], inputs)
        self.seconds[counted_as or name] += time.perf_counter() - start
        self.calls[counted_as or name] += 1
        if name not in self._ran:
            self._ran.add(name)
            memory.release(self._mapped)
        return result

    def _finite(self, name: str, values: Floats) -> Floats:
        if not np.isfinite(values).all():
            raise DeviceError(
                f"{name} returned values that are not finite; compile it with INFERENCE_PRECISION_HINT f32"
            )
        return values


def infer(name: str, request: ov.InferRequest, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """Outputs by name. They are views into the request: copy them to keep them beyond its next call."""
    with boundary(DeviceError, f"{name} failed", reason):
        return request.infer(inputs, share_outputs=True)


def reason(error: Exception) -> str:
    """The informative line of an OpenVINO error; the others only give positions in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (telling or lines or [type(error).__name__])[-1]
