"""The networks run together: a prompt in, the codes of an utterance out. The reference that everything is judged by.

Official counterparts: `Qwen3TTSForConditionalGeneration.generate` and the talker's `forward` around its code predictor.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3_tts_ov import prompt as prompts
from qwen3_tts_ov.prompt import Prompt
from qwen3_tts_ov.sampling import Sampling, TalkerSampler, exponential

from .checkpoint import Checkpoint


class SpeechModel:
    """Talker, code predictor and their embeddings; `config` is the parsed config.json that prompts are planned from."""

    def __init__(self, checkpoint: Checkpoint, config: dict) -> None:
        self.config = config
        self.text_embedding = checkpoint.load("text_embedding")
        self.codec_embedding = checkpoint.load("codec_embedding")
        self.talker = checkpoint.load("talker")
        self.code_predictor = checkpoint.load("code_predictor")

    def embed_frames(self, codes: Tensor) -> Tensor:
        """Frames of codes [frames, groups] to the sums of their embeddings [frames, hidden]."""
        summed = self.codec_embedding(codes[:, 0])
        for group, embedding in enumerate(self.code_predictor.embeddings, start=1):
            summed = summed + embedding(codes[:, group])
        return summed

    def embed_text(self, token_id: int) -> Tensor:
        """One text id's row [1, 1, hidden]."""
        return self.text_embedding(torch.tensor([[token_id]]))

    def embed_prompt(self, prompt: Prompt, speaker: Tensor | None = None, reference: Tensor | None = None) -> Tensor:
        """The prefill [1, positions, hidden]; `speaker` is an x-vector [hidden], `reference` codes [frames, groups]."""
        text, codec = torch.tensor(prompt.text_ids), torch.tensor(prompt.codec_ids)
        rows = self.codec_embedding(codec.clamp(min=0)) * (codec >= 0)[:, None]
        if speaker is not None:
            rows[codec == prompts.SPEAKER] = speaker
        if reference is not None:
            rows[codec == prompts.REFERENCE] = self.embed_frames(reference)
        text_rows = self.text_embedding(text.clamp(min=0)) * (text >= 0)[:, None]
        return (text_rows + rows)[None]

    @torch.inference_mode()
    def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        predictor_sampling: Sampling,
        max_frames: int,
        seed: int = 0,
        speaker: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> NDArray[np.int64]:
        """The codes [frames, groups] of an utterance, up to its end or `max_frames`."""
        rng = np.random.default_rng(seed)
        sampler = TalkerSampler(self.config, sampling, rng)
        frames: list[Tensor] = []
        inputs, start, past = self.embed_prompt(prompt, speaker, reference), 0, None
        while len(frames) < max_frames:
            positions = torch.arange(start, start + inputs.shape[1])[None]
            logits, hidden, past = self.talker(inputs, positions, past)
            start += inputs.shape[1]
            first = sampler(logits[0, -1].numpy())
            if first == sampler.end_id:
                break
            codes, summed = self._frame(hidden[:, -1:], first, predictor_sampling, rng)
            inputs = summed + self.embed_text(prompt.text_id_after(len(frames)))
            frames.append(codes)
        return torch.cat(frames).numpy() if frames else np.zeros((0, self.groups), dtype=np.int64)

    @property
    def groups(self) -> int:
        return len(self.code_predictor.embeddings) + 1

    def _frame(self, hidden: Tensor, first: int, sampling: Sampling, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A frame's codes [1, groups] and their summed embedding [1, 1, hidden]."""
        vocabulary = self.code_predictor.config.vocab_size
        shape = (1, self.groups - 1, vocabulary)
        noise = exponential(rng, shape) if sampling.do_sample else np.ones(shape, np.float32)
        first_code = torch.tensor([[first]])
        return self.code_predictor.frame(
            hidden,
            first_code,
            self.codec_embedding(first_code),
            torch.from_numpy(noise),
            torch.tensor([sampling.temperature]),
            torch.tensor([sampling.top_k or vocabulary]),
            torch.tensor([sampling.top_p]),
        )
