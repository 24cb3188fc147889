"""score: judges the speech of real weights as listeners would: words, voice, quality, and the loss of the codec.

A base bundle clones each of its recordings in turn, by x-vector alone and in context; one for voice design speaks by
each description in turn, and a long text by the first. A variant may name `recordings` and `descriptions` of its own.

Random weights say nothing, so a synthetic checkpoint is not scored; nor is a figure whose packages are not installed.
The report then says `not_run` and why, never that anything passed. A bound of conf/score that a figure misses, or for
which there is no figure, is printed and reported. The report is small and flat, for a manifest or a model card:

    {"status": "measured",             or "not_run", with a "reason" and no figures
     "variant": …, "precision": …, "bundle_id": …, "seed": …, "device": …,
     "figures": {"word_error_english": 0.021, "speaker_similarity": 0.93, "dnsmos_overall": 3.2, "stoi": 0.96, …},
     "not_run": {"pesq": "why", …},    figures that this kind of bundle should have and does not
     "bounds": {"stoi": 0.9, …},       those that apply to this bundle
     "missed": [{"subject": "speech", "measure": "stoi", "bound": 0.9, "value": 0.85}, …],
     "versions": {"jiwer": …, …},      of the packages that judged
     "heard": [{"wav": …, "voice": …, "language": …, "text": …, "ended": …, "transcript": …, "wrong_words": …,
                "pitch": …, "pace": …}, …]}      the last two, in Hz and letters a second, of a designed voice

`word_error_*` is the word error rate (errors / words in the text; Chinese and Japanese count characters), lower is
better. `judging/scorers.py` defines every figure.
"""

from importlib.metadata import packages_distributions, version
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, ListConfig

from pipeline.judging.gates import missed, tell
from pipeline.judging.scorers import (
    SCORERS,
    Asked,
    Floats,
    Material,
    RoundTrip,
    Scorer,
    Spoken,
    applicable,
    at_rate,
    own,
    suitable,
)
from pipeline.judging.words import wrong_words
from pipeline.stage import ROOT, PipelineError, main, output, paths, read_report, report, track
from qwen3_tts_ov import Bundle, Synthesizer, audio
from qwen3_tts_ov.manifest import read_manifest

Recording = tuple[str, Floats, str | None]  # its path as conf has it, the waveform [samples], and what is said in it


def run(cfg: DictConfig) -> None:
    """Writes artifacts/<variant>/<precision>/score: the report and, where the weights are real, what was heard."""
    where, said = paths(cfg), cfg.score
    check(cfg)
    manifest = read_manifest(where.bundle)
    about = {
        "variant": cfg.variant.name,
        "precision": cfg.precision.name,
        "bundle_id": manifest["bundle_id"],
        "seed": cfg.seed,
        "device": said.device,
    }
    chosen = suitable(cfg, manifest["kind"])
    lacking = {name: reason for name, scorer in chosen.items() if (reason := scorer.lacks())}
    heard = [ROOT / Path(entry.path).expanduser() for entry in own(cfg, "recordings")]
    with output(where.score, heard) as folder:
        synthetic = read_report(where.checkpoint)["source"] == "synthetic"
        if reason := why_not(synthetic, chosen, lacking):
            result: dict[str, Any] = {"status": "not_run", "reason": reason, "figures": {}, "not_run": {}}
        else:
            result = {"status": "measured"} | judge(Bundle.load(where.bundle), chosen, lacking, cfg, folder)
        bounds = {} if synthetic else applicable(said.bounds, chosen, list(said.texts))
        misses = missed("speech", result["figures"], bounds, dict.fromkeys(bounds, reason) | result["not_run"])
        report(folder, {**about, **result, "bounds": bounds, "missed": [miss.entry() for miss in misses]})
    print(summary(result))
    tell(misses)


def check(cfg: DictConfig) -> None:
    """Raises PipelineError for an unknown scorer, a bound on an unknown figure, and a bound that is not a number.

    Also for recordings, descriptions and texts that are not as conf/score has them.
    """
    said = cfg.score
    if unknown := [name for name in said.scorers if name not in SCORERS]:
        raise PipelineError(f"score.scorers: unknown {', '.join(unknown)}; known: {', '.join(SCORERS)}")
    if not said.texts or not all(isinstance(texts, ListConfig) and texts for texts in said.texts.values()):
        raise PipelineError("score.texts: give at least one language, and for each a list of sentences")
    if not all(isinstance(entry, DictConfig) and "path" in entry for entry in own(cfg, "recordings")):
        raise PipelineError("score.recordings: each is {path: …, text: …}, with what is said in it")
    for entry in own(cfg, "descriptions"):
        asked(entry, said.levels)
    known = [name for scorer in SCORERS.values() for name in scorer.figure_names(list(said.texts))]
    for name, bound in said.bounds.items():
        if name not in known:
            raise PipelineError(f"score.bounds: there is no figure {name!r}; known: {', '.join(known)}")
        if isinstance(bound, bool) or not isinstance(bound, (int, float)):
            raise PipelineError(f"score.bounds.{name} must be a number, not {bound!r}")


def asked(entry: Any, levels: DictConfig) -> Asked:
    """The ranges of pitch and pace that a description asks for. Raises PipelineError for any that is none."""
    if not isinstance(entry, DictConfig) or "instruct" not in entry:
        raise PipelineError("score.descriptions: each is {instruct: …, pitch: …, pace: …}, the last two as in levels")
    found = {}
    for key in (key for key in ("pitch", "pace") if key in entry):
        range_ = levels[key].get(entry[key]) if isinstance(entry[key], str) else entry[key]
        if not isinstance(range_, ListConfig) or [type(each) in (int, float) for each in range_] != [True, True]:
            known = ", ".join(levels[key])
            raise PipelineError(f"score.descriptions: {key} is {known} or [least, most], not {entry[key]!r}")
        found[key] = (range_[0], range_[1])
    return found


def why_not(synthetic: bool, chosen: dict[str, Scorer], lacking: dict[str, str]) -> str:
    """Why nothing can be scored; empty where something can."""
    if synthetic:
        return "the checkpoint's weights are synthetic: random weights say nothing to score"
    if not chosen:
        return "no scorer of score.scorers suits this kind of bundle"
    judges = {name for name, scorer in chosen.items() if scorer.packages}
    return "; ".join(dict.fromkeys(lacking.values())) if lacking.keys() == judges else ""


def judge(
    bundle: Bundle, chosen: dict[str, Scorer], lacking: dict[str, str], cfg: DictConfig, folder: Path
) -> dict[str, Any]:
    """The report's figures, of speech whose WAVs are written to `folder`."""
    said = cfg.score
    material = speak(Synthesizer(bundle, said.device, cache_dir=False), cfg, folder)
    figures: dict[str, float] = {}
    not_run: dict[str, str] = {}
    for name in track(list(chosen), "score"):
        scorer = chosen[name]
        found: dict[str, float | str] = dict.fromkeys(
            scorer.figure_names(list(said.texts)), "the bundle does not speak it"
        )
        found |= dict.fromkeys(found, lacking[name]) if name in lacking else scorer.judge(material)
        figures |= {figure: round(value, 4) for figure, value in found.items() if not isinstance(value, str)}
        not_run |= {figure: value for figure, value in found.items() if isinstance(value, str)}
    transcripts = material.transcripts if "word_error" in chosen.keys() - lacking else {}
    distributions = packages_distributions()
    used = {distributions[module][0] for name in chosen if name not in lacking for module in chosen[name].packages}
    return {
        "figures": figures,
        "not_run": not_run,
        "versions": {name: version(name) for name in used},
        "heard": [heard(wav, spoken, transcripts.get(wav)) for wav, spoken in material.spoken.items()],
    }


def heard(wav: str, spoken: Spoken, transcript: str | None) -> dict[str, Any]:
    """One sentence as the report has it; without a transcript, no word is known to be wrong."""
    entry = {
        "wav": wav,
        "voice": spoken.named,
        "language": spoken.language,
        "text": spoken.text,
        "ended": spoken.ended,
        **({name: value and round(value, 1) for name, value in spoken.prosody.items()} if spoken.asked else {}),
    }
    if transcript is None:
        return entry
    wrong = wrong_words(spoken.text, transcript, spoken.language)
    return entry | {"transcript": transcript.strip(), "wrong_words": wrong}


def summary(result: dict[str, Any]) -> str:
    """One line for people."""
    if result["status"] == "not_run":
        return f"not_run: {result['reason']}"
    measured = ", ".join(f"{name} {value:.3g}" for name, value in result["figures"].items())
    return f"measured: {measured or 'nothing'}" + (
        f"; not_run: {', '.join(result['not_run'])}" * bool(result["not_run"])
    )


def speak(synthesizer: Synthesizer, cfg: DictConfig, folder: Path) -> Material:
    """Speaks the sentences in the model's languages, and passes its recordings through the codec and back."""
    said, model = cfg.score, synthesizer.model
    known = sorted(model.config["talker_config"]["codec_language_id"])
    sentences = {
        f"{language}-{number}.wav": (language, text)
        for language, texts in said.texts.items()
        if language in known
        for number, text in enumerate(texts[: said.sentences], start=1)
    }
    if not sentences:
        listed = ", ".join(known)
        raise PipelineError(f"score.texts: the bundle speaks none of {', '.join(said.texts)}; it knows {listed}")
    recordings = load_recordings(cfg, model.sample_rate) if model.kind == "base" else []
    voices = cycle(choose_voices(synthesizer, recordings, cfg))
    spoken = {}
    for wav in track(list(sentences), "speak"):
        language, text = sentences[wav]
        voice, about = next(voices)
        speech = synthesizer.speak(text, language=language, seed=cfg.seed, **voice)
        if not speech.samples:
            raise PipelineError(f"{model.name}: it said nothing for {text!r}")
        speech.save(folder / wav)
        heard, ended = at_rate(speech.waveform, model.sample_rate), speech.stop_reason == "eos"
        spoken[wav] = Spoken(language, text, heard, ended=ended, **about)
    trips = [round_trip(synthesizer, name, waveform) for name, waveform, _ in recordings]
    long = model.kind == "voice_design" and "one_voice" in said.scorers
    return Material(
        spoken, trips, said.whisper, speak_long(synthesizer, cfg, list(spoken.values()), folder) if long else []
    )


def load_recordings(cfg: DictConfig, rate: int) -> list[Recording]:
    """The recordings to clone, at the bundle's rate. Raises PipelineError where there is none."""
    if not (entries := own(cfg, "recordings")):
        raise PipelineError("score.recordings: a base bundle needs at least one recording to clone")
    files = [(entry, ROOT / Path(entry.path).expanduser()) for entry in entries]
    return [(entry.path, audio.load(file, rate), entry.get("text")) for entry, file in files]


def speak_long(synthesizer: Synthesizer, cfg: DictConfig, sentences: list[Spoken], folder: Path) -> list[Floats]:
    """All sentences of the first language as one text, by the first description, cut into as many pieces."""
    language = sentences[0].language
    texts = [spoken.text for spoken in sentences if spoken.language == language]
    instruct = own(cfg, "descriptions")[0].instruct
    speech = synthesizer.speak(" ".join(texts), language=language, seed=cfg.seed, instruct=instruct)
    speech.save(folder / "long.wav")
    return np.array_split(at_rate(speech.waveform, synthesizer.model.sample_rate), max(2, len(texts)))


def choose_voices(
    synthesizer: Synthesizer, recordings: list[Recording], cfg: DictConfig
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The arguments that choose a voice, each with what a Spoken says about that voice."""
    kind = synthesizer.model.kind
    if kind == "base":
        return [
            clone(synthesizer, number, recordings[number], in_context=(number + turn) % 2 == 1)
            for turn in range(2)  # in the second, the other way
            for number in range(len(recordings))
        ]
    if kind == "voice_design":
        return [
            (
                {"instruct": entry.instruct},
                {"voice": n, "asked": asked(entry, cfg.score.levels), "named": entry.instruct},
            )
            for n, entry in enumerate(own(cfg, "descriptions"))
        ]
    names = [cfg.score.speaker] if cfg.score.speaker else synthesizer.model.speakers
    return [({"voice": name}, {"voice": n, "named": name}) for n, name in enumerate(names)]


def clone(
    synthesizer: Synthesizer, number: int, recording: Recording, in_context: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A voice of `choose_voices` that clones a recording, in context only if it is known what is said there."""
    path, waveform, said = recording
    rate, in_context = synthesizer.model.sample_rate, in_context and said is not None
    about = {
        "voice": number,
        "reference": at_rate(waveform, rate),
        "said": said,
        "in_context": in_context,
        "named": f"{path}, {'in context' if in_context else 'x-vector'}",
    }
    return {"voice": synthesizer.voice_prompt((waveform, rate), said if in_context else None)}, about


def round_trip(synthesizer: Synthesizer, name: str, waveform: Floats) -> RoundTrip:
    """A recording [samples] at the bundle's rate, encoded to codes and decoded."""
    codes = synthesizer.engine.encode(waveform)
    with synthesizer.engine.session() as session:
        decoded = session.decode(codes)[: len(waveform)]
    rate = synthesizer.model.sample_rate
    return RoundTrip(name, at_rate(waveform[: len(decoded)], rate), at_rate(decoded, rate))


if __name__ == "__main__":
    main(run)
