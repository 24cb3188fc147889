"""Who speaks: the teacher's voice made into others, named, drawn, or described in words.

The teacher is one person. Her formants, pitch, melody, spectral tilt, breath and pace are scaled before her vocoder, so
that there are as many voices as there are numbers, and a Whisper understands each of them as well as her own.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from functools import cache
from math import log

import numpy as np
from omegaconf import DictConfig

DESCRIBED = 10_000  # ids of described voices begin here, after those of drawn ones and of names
CANDIDATES = 80  # drawn, of which those farthest from one another are the unseen voices


@dataclass(frozen=True)
class Voice:
    """Factors, but for `tilt`, `breath`, `level`, `noise` and `loudness`; the defaults are the teacher herself."""

    formants: float = 1.0  # below 1 kHz,
    high_formants: float | None = None  # and from 2.5 kHz on; as those below if None
    pitch: float = 1.0
    melody: float = 1.0  # exponent of the pitch's distance from its mean
    pace: float = 1.0
    tilt: float = 0.0  # dB an octave, around 1 kHz
    breath: float = 0.0  # added to the hiss' logarithm where there is a pitch,
    noise: float = 0.0  # to the residue's there,
    level: float = 0.0  # and to the harmonics'
    loudness: float | None = None  # root mean square in dB of full scale; as it comes if None

    def traits(self) -> list[float]:
        """What an ear could tell of a drawn voice, each about -1 to 1: the speaker encoder learns to."""
        high = self.high_formants or self.formants
        logs = [log(self.formants) / 0.17, log(high) / 0.17, log(self.pitch) / 0.45 + 0.5]
        return [*logs, log(self.melody) / 0.6, log(self.pace) / 0.18, self.tilt / 3, self.breath / 1.3]


TRAITS = len(Voice().traits())


def draw(rng: np.random.Generator) -> Voice:
    """A voice at random: deep ones mostly with low formants, as in people."""
    pitch = float(np.exp(rng.uniform(log(0.5), log(1.3))))
    size = 0.80 + 0.34 * log(pitch / 0.5) / log(1.3 / 0.5) + rng.normal(0, 0.05)
    spread = rng.normal(0, 0.05)
    return Voice(
        formants=round(size * (1 + spread), 3),
        high_formants=round(size * (1 - spread), 3),
        pitch=round(pitch, 3),
        melody=round(float(np.exp(rng.uniform(log(0.5), log(1.7)))), 3),
        pace=round(float(np.exp(rng.uniform(log(0.85), log(1.2)))), 3),
        tilt=round(rng.uniform(-3, 3), 2),
        breath=round(rng.uniform(-1.5, 1.0), 2),
        loudness=-23.0,
    )


def drawn(seed: int, count: int) -> list[Voice]:
    """The voices to learn cloning from."""
    return [draw(np.random.default_rng([seed, 1, number])) for number in range(count)]


def unseen(seed: int, count: int) -> list[Voice]:
    """Voices that no training hears, far from one another."""
    candidates = [draw(np.random.default_rng([seed, 2, number])) for number in range(CANDIDATES)]
    places = np.array([voice.traits() for voice in candidates])
    chosen = [0]
    while len(chosen) < count:
        distances = np.linalg.norm(places[:, None] - places[chosen], axis=-1).min(1)
        chosen.append(int(distances.argmax()))
    return [candidates[number] for number in chosen]


# ---- voices in words -----------------------------------------------------------------------------------------------

# Of each trait: what it does to the teacher, and words for it. The last words of each are kept out of training.
KINDS: dict[str, tuple[dict[str, float], list[str]]] = {
    "": ({}, ["voice", "speaker", "narrator", "person", "storyteller"]),
    "man": (
        {"pitch": 0.55, "formants": 0.84},
        ["man", "male voice", "male speaker", "gentleman", "man's voice", "guy", "male narrator"],
    ),
    "woman": (
        {},
        ["woman", "female voice", "female speaker", "lady", "woman's voice", "female narrator"],
    ),
    "child": (
        {"pitch": 1.35, "formants": 1.17},
        ["child", "child's voice", "young girl", "kid", "little girl", "small child"],
    ),
    "giant": (
        {"pitch": 0.5, "formants": 0.76},
        ["giant", "huge man", "giant's voice", "ogre", "very big man"],
    ),
}
PITCHES = {
    "": (1.0, [""]),
    "very low": (0.75, ["very deep", "very low", "extremely low-pitched", "very low-pitched"]),
    "low": (0.86, ["deep", "low", "low-pitched", "rather deep", "somewhat low"]),
    "high": (1.17, ["high", "high-pitched", "rather high", "somewhat high"]),
    "very high": (1.36, ["very high", "very high-pitched", "shrill", "extremely high"]),
}
PACES = {
    "": (1.0, [""]),
    "very slow": (0.72, ["very slowly", "extremely slowly", "at a very slow pace", "ever so slowly"]),
    "slow": (0.85, ["slowly", "unhurriedly", "at a slow pace", "without haste", "leisurely"]),
    "fast": (1.2, ["fast", "quickly", "at a fast pace", "hurriedly", "at a quick pace"]),
    "very fast": (1.38, ["very fast", "very quickly", "extremely fast", "at a very fast pace"]),
}
LOUDNESS = {
    "": (0.0, [""]),
    "quiet": (-9.0, ["quietly", "softly", "in a hushed tone", "very quietly", "in a low volume"]),
    "loud": (5.0, ["loudly", "in a loud tone", "very loudly", "at full volume"]),
}
TIMBRES: dict[str, tuple[dict[str, float], list[str]]] = {
    "": ({}, [""]),
    "breathy": ({"breath": 1.6, "tilt": -1.5}, ["breathy", "airy", "husky"]),
    "bright": ({"tilt": 3.0}, ["bright", "crisp", "sharp"]),
    "dark": ({"tilt": -3.0}, ["dark", "warm", "mellow", "muffled"]),
}
MELODIES = {
    "": (1.0, [""]),
    "monotone": (0.3, ["monotone", "flat", "robotic", "monotonous"]),
    "lively": (1.7, ["lively", "expressive", "animated", "cheerful"]),
}
TABLES: Sequence[dict] = (KINDS, PITCHES, PACES, LOUDNESS, TIMBRES, MELODIES)  # type: ignore[type-arg]
FORMS = (
    "A {adjectives} {noun}, speaking {adverbs}.",
    "Speak {adverbs}, as a {adjectives} {noun}.",
    "{adjectives} {noun}, {adverbs}",
    "The speech of a {adjectives} {noun} who talks {adverbs}.",
    "Use a {adjectives} {noun}. Talk {adverbs}.",
    "I want a {adjectives} {noun} that speaks {adverbs}.",
    "Please read this {adverbs}, like a {adjectives} {noun} would.",  # kept out
)


@dataclass(frozen=True)
class Design:
    """What a description asks for, a key of each table; empty where it leaves that open, which is the teacher's."""

    kind: str = ""
    pitch: str = ""
    pace: str = ""
    loudness: str = ""
    timbre: str = ""
    melody: str = ""

    @property
    def voice(self) -> Voice:
        made = KINDS[self.kind][0] | TIMBRES[self.timbre][0]
        pitch = made.pop("pitch", 1.0) * PITCHES[self.pitch][0]
        return Voice(
            pitch=round(pitch, 3),
            pace=PACES[self.pace][0],
            melody=MELODIES[self.melody][0],
            loudness=-23.0 + LOUDNESS[self.loudness][0],
            **made,
        )

    @property
    def id(self) -> int:
        """DESCRIBED and on, one for each design."""
        number = 0
        for table, key in zip(TABLES, astuple(self), strict=True):
            number = number * len(table) + list(table).index(key)
        return DESCRIBED + number


@cache
def design(identity: int) -> Design:
    """The design of an id."""
    number, keys = identity - DESCRIBED, []
    for table in reversed(TABLES):
        number, place = divmod(number, len(table))
        keys.append(list(table)[place])
    return Design(*reversed(keys))


def draw_design(rng: np.random.Generator) -> Design:
    """One at random: each trait but the kind is left open half of the time."""
    keys = [str(rng.choice(list(KINDS)))]
    for table in TABLES[1:]:
        keys.append(str(rng.choice(list(table)[1:])) if rng.random() < 0.4 else "")
    return Design(*keys)


def describe(wanted: Design, rng: np.random.Generator, kept_out: bool = False) -> str:
    """A design in words; `kept_out` uses the words and forms that training never does."""

    def word(table: dict, key: str) -> str:  # type: ignore[type-arg]
        words = table[key][1]
        if len(words) == 1:
            return words[0]
        return words[-1] if kept_out else str(rng.choice(words[:-1]))

    adjectives = [
        word(table, key)
        for table, key in ((PITCHES, wanted.pitch), (TIMBRES, wanted.timbre), (MELODIES, wanted.melody))
    ]
    adjectives = [each for each in adjectives if each]
    rng.shuffle(adjectives)
    adverbs = [each for each in (word(PACES, wanted.pace), word(LOUDNESS, wanted.loudness)) if each]
    form = FORMS[-1] if kept_out else str(rng.choice(FORMS[:-1]))
    noun = word(KINDS, wanted.kind)
    text = form.format(adjectives=", ".join(adjectives), noun=noun, adverbs=" and ".join(adverbs) or "normally")
    text = " ".join(text.split()).replace(" ,", ",")
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}").replace(f"A {vowel}", f"An {vowel}")
    text = text[0].upper() + text[1:]
    return text if kept_out or rng.random() < 0.7 else text.lower().rstrip(".")


def cast(cfg: DictConfig) -> dict[int, Voice]:
    """Every voice but the described ones by its id."""
    known = {field.name for field in fields(Voice)}
    named = {
        settings.id: Voice(**{key: value for key, value in settings.items() if key in known})
        for settings in cfg.speech.voices.values()
    }
    return named | dict(enumerate(drawn(cfg.seed, cfg.speech.drawn.voices)))


def voice_of(identity: int, voices: dict[int, Voice]) -> Voice:
    return design(identity).voice if identity >= DESCRIBED else voices[identity]
