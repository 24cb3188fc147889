"""Gates: what the pipeline measures, whether lower or higher is better, and what happens where a bound is missed.

A bound is a number in conf, a gate holds a measure to it, and there are two kinds. *Correctness* says that a graph
computes what its network computes and that speech is speech at all: `require` fails the stage. *Quality* says what a
precision costs: `missed` lists what is worse than its bound, the stage goes on, and reports, manifest and model card
say so. Bounds on quality are estimates until they have been measured on released weights, so they keep nobody from
a bundle; only `publish` stops there, unless conf allows it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.stage import PipelineError

Better = Literal["higher", "lower", "within"]
Bounds = Mapping[str, Any]  # by measure, a number, or [least, most] of a measure that must lie within


class GateError(PipelineError):
    """A bound on correctness is missed, or a measure is not finite; the message names measure, value and bound."""


@dataclass(frozen=True)
class Measure:
    """What a measure is, in words, and which direction is better."""

    meaning: str
    better: Better = "higher"


OF_GRAPHS = {
    # against the PyTorch network
    "snr_db": Measure("signal-to-noise ratio of an output, in dB"),
    "agreement": Measure("share of equal integers in an output"),
    # of a compressed graph, against the exported one on the held-out texts
    "top1": Measure("share of steps with the same most likely code"),
    "top5": Measure("share of steps whose most likely code is among the five most likely"),
    "kl": Measure("Kullback-Leibler divergence of the next code's distribution, in nats", "lower"),
    "early_groups": Measure("share of equal codes in the first half of a frame's groups, given the same codes before"),
    "late_groups": Measure("share of equal codes in the second half of a frame's groups, given the same codes before"),
    "waveform_snr_db": Measure("signal-to-noise ratio of the waveform, in dB"),
    "log_mel_db": Measure("mean distance between log-mel spectra, in dB", "lower"),
    "code_agreement": Measure("share of codes equal to those of 16-bit weights"),
    "cosine": Measure("lowest cosine between x-vectors"),
}
OF_SPEECH = {
    "frames": Measure("number of frames spoken"),
    "rms_dbfs": Measure("level of the speech, in dBFS"),
    "clipped_fraction": Measure("share of samples at full scale", "lower"),
    "stream_difference": Measure("largest difference between streamed and whole waveform, full scale 1", "lower"),
    "length": Measure("duration of the speech, over that of a slow reader", "within"),
    "ended": Measure("share of sentences that ended by themselves"),
    "word_error": Measure("word error rate (errors / words of the text)", "lower"),
    "speaker_similarity": Measure("mean cosine between voices"),
    "speaker_similarity_x_vector": Measure("mean cosine between reference and clone by x-vector alone"),
    "speaker_similarity_in_context": Measure("mean cosine between reference and clone in context"),
    "nearest_voice": Measure("share of clones that are nearest to their own reference, of all recordings"),
    "leaked_words": Measure("share of clones with words of the reference", "lower"),
    "description_pitch": Measure("share of sentences as high or low as the description asks"),
    "description_pace": Measure("share of sentences as fast or slow as the description asks"),
    "one_voice": Measure("mean cosine between the voices of the pieces of a long text"),
    "dnsmos_signal": Measure("DNSMOS P.835 of the speech signal, 1 to 5"),
    "dnsmos_background": Measure("DNSMOS P.835 of the background, 1 to 5"),
    "dnsmos_overall": Measure("DNSMOS P.835 overall, 1 to 5"),
    "pesq": Measure("wide-band PESQ of the codec, -0.5 to 4.64"),
    "stoi": Measure("short-time objective intelligibility of the codec, at most 1"),
}


def worst(by_output: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The lowest that the outputs of a graph reached in each measure of which higher is better."""
    lowest: dict[str, float] = {}
    for values in by_output.values():
        lowest |= {name: min(value, lowest.get(name, value)) for name, value in values.items()}
    return lowest


def measure(name: str) -> Measure:
    """The declaration of a measure; `word_error_english` is `word_error` in one language."""
    return (OF_GRAPHS | OF_SPEECH)["word_error" if name.startswith("word_error_") else name]


@dataclass(frozen=True)
class Miss:
    """A bound that is missed: by `value`, or, where there is none to judge, for a `reason`."""

    subject: str  # a graph, an output, a device or a bundle
    measure: str
    bound: Any
    value: float | None = None
    reason: str | None = None

    def entry(self) -> dict[str, Any]:
        """As reports and manifest have it; `Miss(**entry)` reads it."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        found = f"not measured ({self.reason})" if self.value is None else f"{self.value:.4g}"
        return f"{self.subject}: {self.measure} is {found}, bound: {described(self.measure, self.bound)}"


def described(name: str, bound: Any) -> str:
    """A bound with the direction of its measure, as `at least 0.9`."""
    match measure(name).better:
        case "higher":
            return f"at least {bound}"
        case "lower":
            return f"at most {bound}"
        case "within":
            return "{} to {}".format(*bound)


def holds(name: str, value: float, bound: Any) -> bool:
    """Whether a value is within its bound. NaN never is."""
    least, most = {"higher": (bound, math.inf), "lower": (-math.inf, bound), "within": bound}[measure(name).better]
    return least <= value <= most


def missed(
    subject: str, values: Mapping[str, float], bounds: Bounds, absent: Mapping[str, str] | None = None
) -> list[Miss]:
    """The bounds that the values of a subject miss; a value that is missing counts, `absent` has the reason.

    A measure without a bound passes. Raises GateError for a value that is not finite: then nothing was measured.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise GateError(f"{subject}: {name} is {value}; the output is not finite, or not of the expected shape")
    return [
        Miss(subject, name, bound, values.get(name), None if name in values else (absent or {}).get(name, "no figure"))
        for name, bound in bounds.items()
        if name not in values or not holds(name, values[name], bound)
    ]


def require(subject: str, values: Mapping[str, float], bounds: Bounds) -> None:
    """Raises GateError naming every bound on correctness that the values of a subject miss."""
    if faults := missed(subject, values, bounds):
        raise GateError("; ".join(map(str, faults)))


def tell(misses: list[Miss]) -> None:
    """Prints a line for each missed bound on quality."""
    for miss in misses:
        print(f"missed: {miss}", flush=True)
