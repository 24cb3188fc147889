"""What a recording must be like to be cloned: its length, silence, noise, room, level and text, as heard.

    python -m benchmarks.cloning BUNDLE [variant=mini-base] [score.sentences=2]

Each of the variant's recordings is changed in one way, cloned by x-vector alone and in context, and speaks so many
sentences of conf/score. Similarity is to the recording as it was. Prints a Markdown table.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from pipeline.judging.scorers import Floats, Material, Spoken, VoiceEncoder, at_rate, leaked_words, word_error
from pipeline.score import Recording, load_recordings
from pipeline.stage import configuration, errors_for_people
from qwen3_tts_ov import Bundle, Synthesizer

LANGUAGE, RATE = "english", 24_000
Change = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Case:
    """One change of a recording, or of what is said to be its text; some only make sense without a text."""

    name: str
    change: Change = lambda waveform: waveform
    said: Callable[[str], str | None] = lambda text: text


def silence(before: float, after: float) -> Change:
    return lambda waveform: np.pad(waveform, (round(before * RATE), round(after * RATE)))


def noisy(decibels: float) -> Change:
    """White noise, so far below the recording's level."""

    def change(waveform: Floats) -> Floats:
        noise = np.random.default_rng(0).standard_normal(len(waveform)).astype(np.float32)
        return waveform + noise * np.sqrt(np.mean(waveform**2)) * np.float32(10 ** (-decibels / 20))

    return change


def in_a_room(seconds: float) -> Change:
    """Noise that fades by 60 dB in so many seconds stands for the room's response, at the level of the direct sound."""

    def change(waveform: Floats) -> Floats:
        times = np.arange(round(seconds * RATE)) / RATE
        response = np.random.default_rng(0).standard_normal(len(times)) * 10 ** (-3 * times / seconds)
        response /= np.sqrt(np.sum(response**2))
        response[0] += 1
        made = np.convolve(waveform, response)[: len(waveform)]
        return (made * np.abs(waveform).max() / np.abs(made).max()).astype(np.float32)

    return change


def first(seconds: float) -> Change:
    return lambda waveform: waveform[: round(seconds * RATE)]


def words(share: float) -> Callable[[str], str | None]:
    return lambda text: " ".join(text.split()[: round(share * len(text.split()))])


def nothing(_: str) -> None:
    """Without a text it can only be cloned by its x-vector."""


def times(count: int) -> tuple[Change, Callable[[str], str | None]]:
    return lambda waveform: np.tile(waveform, count), lambda text: " ".join([text] * count)


CASES = (
    Case("as it is, 4 s"),
    *(Case(f"its first {seconds} s", first(seconds), nothing) for seconds in (1, 2)),
    *(Case(f"said {count} times, {4 * count} s", *times(count)) for count in (2, 4, 12)),
    Case("1 s of silence before", silence(1, 0)),
    Case("1 s of silence after", silence(0, 1)),
    Case("cut off in its last word", lambda waveform: waveform[: -RATE // 2]),
    *(Case(f"white noise, {decibels} dB below", noisy(decibels)) for decibels in (30, 20, 10)),
    *(Case(f"in a room that echoes for {seconds} s", in_a_room(seconds)) for seconds in (0.2, 0.6)),
    Case("20 dB quieter", lambda waveform: waveform / 10),
    *(Case(f"of its text the first {share:.0%}", said=words(share)) for share in (0.75, 0.5)),
)


def main(bundle: Path, *overrides: str) -> None:
    cfg = configuration(["variant=mini-base", "score.sentences=2", *overrides])
    speaker, recordings = Synthesizer(Bundle.load(bundle), cache_dir=False), load_recordings(cfg, RATE)
    encoder = VoiceEncoder.packaged()
    known = [encoder.embed(at_rate(waveform, RATE)) for _, waveform, _ in recordings]
    print("| recording | x-vector: similarity | wrong words | in context: similarity | wrong words | leaks |")
    print("|---|---:|---:|---:|---:|---:|")
    for case in CASES:
        cells = [case.name]
        for in_context in (False, True):
            material = speak(speaker, recordings, case, in_context, cfg)
            likeness = [known[each.voice] @ encoder.embed(each.waveform) for each in material.spoken.values()]
            if not likeness:
                cells += [""] * 3
                continue
            wrong = word_error(material)[f"word_error_{LANGUAGE}"]
            cells += [f"{np.mean(likeness):.3f}", f"{wrong:.1%}"]
            cells += [f"{leaked_words(material)['leaked_words']:.0%}"] if in_context else []
        print(f"| {' | '.join(cells)} |", flush=True)


def speak(speaker: Synthesizer, recordings: list[Recording], case: Case, in_context: bool, cfg: DictConfig) -> Material:
    """What the clones of all recordings say; nothing, where a case has no text to clone in context by."""
    spoken, following = {}, cycle(cfg.score.texts[LANGUAGE])
    for number, (path, waveform, text) in enumerate(recordings):
        said = case.said(text or "") if in_context else None
        if in_context and said is None:
            break
        voice = speaker.voice_prompt((case.change(waveform), RATE), said)
        for sentence in islice(following, cfg.score.sentences):
            speech = speaker.speak(sentence, voice, language=LANGUAGE, seed=0)
            heard, ended = at_rate(speech.waveform, RATE), speech.stop_reason == "eos"
            spoken[f"{path} {sentence}"] = Spoken(LANGUAGE, sentence, heard, voice=number, ended=ended, said=text)
    return Material(spoken)


if __name__ == "__main__":
    with errors_for_people():
        main(Path(sys.argv[1]), *sys.argv[2:])
