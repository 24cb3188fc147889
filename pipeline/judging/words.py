"""What was said, in words: a Whisper that writes it down, and how transcripts are compared with texts.

Audio is float32 [samples], mono, at 16 kHz; everything runs on the CPU, in float32 and without randomness.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.judging.prosody import RATE, Floats
from pipeline.stage import PipelineError, one_line

UNSPACED = ("chinese", "japanese")  # written without spaces: characters are counted instead of words
WHISPER_SECONDS = 30  # its input at a time
PAUSE = RATE // 10  # samples that are quiet together between two sentences


class Whisper:
    """A Whisper for CTranslate2. Raises PipelineError for a folder without one."""

    def __init__(self, folder: Path) -> None:
        import ctranslate2
        from tokenizers import Tokenizer
        from transformers import WhisperFeatureExtractor

        self.folder = folder
        if missing := [name for name in ("model.bin", "tokenizer.json") if not (folder / name).is_file()]:
            raise PipelineError(
                f"score.whisper: {folder} is no Whisper for CTranslate2, {' and '.join(missing)} missing"
            )
        try:
            self._model = ctranslate2.models.Whisper(str(folder), device="cpu", compute_type="float32")
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # neither library raises anything narrower
            raise PipelineError(f"score.whisper: {folder} cannot be loaded ({one_line(error)})") from error
        self._features = WhisperFeatureExtractor(feature_size=self._model.n_mels)

    def knows(self, language: str) -> bool:
        """Whether it can transcribe a language, given by its name in the model's configuration."""
        if not self._model.is_multilingual:
            return language == "english"
        return self._tokenizer.token_to_id(f"<|{language_code(language)}|>") is not None

    def transcript(self, waveform: Floats, language: str) -> str:
        """The transcript of a waveform, by beam search, at most 30 seconds at a time."""
        import ctranslate2

        prompt = ["<|startoftranscript|>"]
        if self._model.is_multilingual:
            prompt += [f"<|{language_code(language)}|>", "<|transcribe|>"]
        said = []
        for piece in windows(waveform):
            features = self._features(piece, sampling_rate=RATE, return_tensors="np")["input_features"]
            found = self._model.generate(
                ctranslate2.StorageView.from_array(np.ascontiguousarray(features, np.float32)),
                [[*prompt, "<|notimestamps|>"]],
                beam_size=5,
            )
            said.append(self._tokenizer.decode(found[0].sequences_ids[0]))
        return " ".join(said)


def windows(waveform: Floats) -> Iterator[Floats]:
    """A waveform in parts of at most 30 seconds, cut in the pauses: half a word is understood as another one."""
    longest, shortest = WHISPER_SECONDS * RATE, WHISPER_SECONDS * RATE * 2 // 3
    while len(waveform) > longest:
        level = np.convolve(np.abs(waveform[shortest:longest]), np.ones(PAUSE), "valid")
        cut = shortest + int(level.argmin()) + PAUSE // 2
        yield waveform[:cut]
        waveform = waveform[cut:]
    yield waveform


def language_code(language: str) -> str | None:
    """`en` for english; None for what Whisper does not name, such as a dialect."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    code: str | None = TO_LANGUAGE_CODE.get(language)
    return code


def wrong_words(text: str, transcript: str, language: str) -> int:
    """How many words (characters, for unspaced languages) were added, left out or replaced."""
    import jiwer

    found = jiwer.process_words(normalised(text, language), normalised(transcript, language))
    return found.substitutions + found.deletions + found.insertions


def normalised(text: str, language: str) -> str:
    """A text in the form that is compared: words (characters for unspaced languages) separated by single spaces."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    if language == "english":
        return EnglishTextNormalizer({})(text).strip()
    return BasicTextNormalizer(split_letters=language in UNSPACED)(text).strip()
