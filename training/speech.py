"""The teacher's speech of the corpus, and the phones that it says, in shards of `work/speech`.

The teacher is hibari-tts (Apache-2.0), 8 MB that speak a hundred times faster than real time on one core. Its graph
holds the duration of each phoneme; with that tensor as one more output, every frame's phones are known, and nothing
has to be aligned. All other voices are made of hers before her vocoder (voices.py).

A shard holds utterances end to end: `waveform` int16 [samples], `frames` and `voice` and `text` [utterances],
`phones` [frames, 2], those of each frame's two halves of 40 ms, and `pitch` [frames, 2] in Hz, 0 where there is none.
`voice` is an id: of a name in conf, the number of a drawn voice, or that of a described one.
"""

import json
import multiprocessing
import os
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich import print
from rich.progress import track

from training.step import corpus, step, work
from training.voices import Voice, cast, draw_design, unseen, voice_of

RATE, FRAME = 24_000, 1920  # Hz, samples
HOP = 300  # samples of the teacher's frame; its durations count two
HALF = FRAME / HOP / 2  # hops
QUIET = 0.006  # peak of a hop without speech
LEAD, TAIL = 6, 13  # quiet hops kept before and after a sentence
PAUSE = 8  # quiet hops from which on they are silence, whatever the phoneme
BINS, BIN = 601, 20.0  # of the teacher's spectra, and Hz of each
VOICED = 40.0  # Hz of pitch from which on the teacher takes a frame for voiced

SILENCE = "sil"
CONSONANTS = [*"əɹntszdlkmpfðvŋbwʃhᵊɡTʤʧθjʒxɾʔ"]
VOWELS = [*"AIOWYiuæɑɔɛɜɪʊʌᵻɐeao"]
STRESSES = {"ˈ": "1", "ˌ": "2"}
PHONES = {
    phone: number
    for number, phone in enumerate([SILENCE, *CONSONANTS, *(v + stress for v in VOWELS for stress in ("", "1", "2"))])
}

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Utterance:
    waveform: NDArray[np.int16]  # [frames * 1920], 24 kHz
    phones: Ints  # [frames, 2]
    pitch: Floats  # [frames, 2], Hz; 0 where there is none


@step
def main(cfg: DictConfig) -> None:
    texts = corpus(cfg)
    folder = work(cfg) / "speech"
    folder.mkdir(exist_ok=True)
    numbered = list(enumerate(texts["train"]))
    parts = [numbered[start : start + cfg.speech.shard] for start in range(0, len(numbered), cfg.speech.shard)]
    shards = [(folder / f"{part[0][0]:06}.npz", part, cfg) for part in parts]
    missing = [shard for shard in shards if not shard[0].exists()]
    processes = cfg.processes or os.cpu_count()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        lost = sum(track(pool.imap_unordered(write_shard, missing), "speaking", total=len(missing)))
    held_out(cfg, texts["held"])
    (folder / "index.json").write_text(json.dumps([path.name for path, *_ in shards]))
    print(f"{folder}: {len(shards)} shards; {lost} texts left out, too long or without a sound")


def write_shard(task: tuple[Path, list[tuple[int, str]], DictConfig]) -> int:
    """Speaks the texts of one shard; the number of those left out."""
    path, texts, cfg = task
    voices = cast(cfg)
    spoken = []
    for number, text in texts:
        identity = choose(cfg, np.random.default_rng([cfg.seed, number]))
        utterance = speak(text, voice_of(identity, voices), cfg, cfg.seed + number)
        if utterance is not None:
            spoken.append((utterance, identity, number))
    partial = path.with_name(f".{path.name}")
    np.savez(
        partial,
        waveform=np.concatenate([utterance.waveform for utterance, *_ in spoken]),
        frames=np.array([len(utterance.phones) for utterance, *_ in spoken], np.int32),
        phones=np.concatenate([utterance.phones for utterance, *_ in spoken]).astype(np.uint8),
        pitch=np.concatenate([utterance.pitch for utterance, *_ in spoken]).astype(np.float16),
        voice=np.array([voice for _, voice, _ in spoken], np.int32),
        text=np.array([number for *_, number in spoken], np.int32),
    )
    partial.rename(path)
    return len(texts) - len(spoken)


def choose(cfg: DictConfig, rng: np.random.Generator) -> int:
    """The id of a text's voice."""
    speech = cfg.speech
    named = list(speech.voices.values())
    shares = np.array([*(voice.share for voice in named), speech.drawn.share, speech.described.share])
    place = int(rng.choice(len(shares), p=shares / shares.sum()))
    if place < len(named):
        return int(named[place].id)
    return int(rng.integers(speech.drawn.voices)) if place == len(named) else draw_design(rng).id


def held_out(cfg: DictConfig, texts: list[str]) -> None:
    """held.npz: the held-out sentences, `<voice>_<number>` and `<voice>_<number>_phones`.

    In every voice with a name, and, as the recordings to clone, the first few in those that no training hears.
    """
    voices = cast(cfg)
    named = {name: (voices[settings.id], len(texts)) for name, settings in cfg.speech.voices.items()}
    strangers = {
        f"unseen{number}": (voice, cfg.speech.drawn.recordings)
        for number, voice in enumerate(unseen(cfg.seed, cfg.speech.drawn.unseen))
    }
    arrays: dict[str, NDArray[Any]] = {}
    for name, (voice, count) in (named | strangers).items():
        for number, text in enumerate(texts[:count]):
            utterance = speak(text, voice, cfg, cfg.seed - 1 - number & 0xFFFF)
            assert utterance is not None, text
            arrays |= {f"{name}_{number}": utterance.waveform, f"{name}_{number}_phones": utterance.phones}
    np.savez(work(cfg) / "held.npz", **arrays)


def speak(text: str, voice: Voice, cfg: DictConfig, seed: int) -> Utterance | None:
    """`text` in a voice, its sentences one after the other; None if it is too long or makes no sound."""
    rng = np.random.default_rng(seed)
    waves, phones, pitch = [], [], []
    for phonemes in teacher().phonemize(text):
        said = say(phonemes, voice, rng)
        if said is None:
            return None
        waves.append(said[0])
        phones.append(said[1])
        pitch.append(said[2])
    frames = -(-sum(map(len, waves)) // FRAME)
    if not waves or frames > cfg.speech.longest:
        return None
    wave = np.zeros(frames * FRAME, np.float32)
    wave[: sum(map(len, waves))] = np.concatenate(waves)
    if voice.loudness is None:
        wave *= cfg.speech.gain
    else:
        wave *= 10 ** (voice.loudness / 20) / np.sqrt(np.mean(wave[np.abs(wave) > QUIET] ** 2))
    return Utterance(
        (wave.clip(-1, 1) * 32767).astype(np.int16),
        halves(np.concatenate(phones), frames),
        middles(np.concatenate(pitch), frames),
    )


def say(phonemes: str, voice: Voice, rng: np.random.Generator) -> tuple[Floats, Ints, Floats] | None:
    """One sentence's samples, and the phone and the pitch of each hop, with little silence around; None if it makes
    no sound.
    """
    from hibari import dsp

    ids = teacher().ids(phonemes)
    inputs = {"ids": np.array([ids], np.int64), "speed": np.full(1, voice.pace, np.float32)}
    *spectra, durations = teacher().sess.run(None, inputs)
    shaped = scaled(*(spectrum[0] for spectrum in spectra), voice)
    wave = dsp.synth(*shaped, rng)
    loud = np.abs(wave).reshape(-1, HOP).max(1) > QUIET
    if not loud.any():
        return None
    spelt = [symbols().get(number, SILENCE) for number in ids]
    phones = silences(phone_hops(spelt, np.round(durations.ravel() * 2).astype(int), len(loud)), ~loud)
    first, last = np.flatnonzero(loud)[[0, -1]]
    kept = slice(max(0, first - LEAD), min(len(loud), last + 1 + TAIL))
    pitch = np.where(loud & (shaped[-1] > VOICED), shaped[-1], 0)
    return wave[kept.start * HOP : kept.stop * HOP], phones[kept], pitch[kept]


def scaled(harmonics, angles, hiss, residue, phases, f0, voice: Voice):  # type: ignore[no-untyped-def]
    """The teacher's spectra (logarithms [bins, hops], and f0 [hops] in Hz) as a voice has them."""
    high = voice.high_formants or voice.formants
    hertz, nyquist = np.arange(BINS) * BIN, (BINS - 1) * BIN
    corners = np.array([0, 1000, 2500, nyquist])
    source = np.interp(hertz, corners * [1, voice.formants, high, high], corners) / BIN
    # Beyond what the teacher has, where formants lie lower than hers, a spectrum falls off.
    past = np.maximum(hertz / high - nyquist, 0)[:, None].astype(np.float32) / BIN * 0.02
    low = np.minimum(source.astype(int), BINS - 1)
    weight = (source - low)[:, None].astype(np.float32)
    tilt = (voice.tilt * np.log2(np.maximum(hertz, 100) / 1000) * np.log(10) / 20)[:, None].astype(np.float32)

    def shaped(spectrum: Floats) -> Floats:
        return spectrum[low] * (1 - weight) + spectrum[np.minimum(low + 1, BINS - 1)] * weight + tilt - past

    voiced = f0 > VOICED
    mean = np.exp(np.log(f0[voiced]).mean()) if voiced.any() else 1.0
    pitch = np.where(voiced, mean * (np.maximum(f0, 1) / mean) ** voice.melody * voice.pitch, f0)
    return (
        shaped(harmonics) + np.float32(voice.level),
        angles[low],
        shaped(hiss) + np.where(voiced, voice.breath, 0.0).astype(np.float32),
        shaped(residue) + np.where(voiced, voice.noise, 0.0).astype(np.float32),
        phases[low],
        pitch.astype(np.float32),
    )


def phone_hops(phonemes: list[str], durations: Ints, hops: int) -> Ints:
    """The phone of each hop: stress marks join the vowel after them, spaces are shared by the phones around."""
    segments: list[tuple[str, int]] = []
    stress, held = "", 0
    for phoneme, duration in zip(phonemes, durations, strict=True):
        if phoneme in STRESSES:
            stress, held = STRESSES[phoneme], duration
        elif phoneme == " ":
            segments.append((" ", duration))
        elif phoneme in CONSONANTS or phoneme in VOWELS:
            segments.append((phoneme + (stress if phoneme in VOWELS else ""), duration + held))
            stress, held = "", 0
        else:  # punctuation
            segments.append((SILENCE, duration + held))
            stress, held = "", 0
    phones: list[int] = []
    for index, (phone, duration) in enumerate(segments):
        if phone == " ":
            before, after = (
                next((p for p, _ in side if p != " "), SILENCE) for side in (segments[index::-1], segments[index:])
            )
            phones += [PHONES[before]] * (duration // 2) + [PHONES[after]] * (duration - duration // 2)
        else:
            phones += [PHONES[phone]] * duration
    return np.pad(np.array(phones, np.int64), (0, max(0, hops - len(phones))))[:hops]


def silences(phones: Ints, quiet: NDArray[np.bool_]) -> Ints:
    """`phones` [hops] with silence in every long stretch without sound, but no phone lost to it."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], quiet.astype(int), [0]])))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if end - start >= PAUSE or start == 0 or end == len(phones):
            swallowed = phones[start:end][phones[start:end] > 0]
            if start > 6 and len(swallowed) and swallowed[0] != phones[start - 1]:
                phones[start - 4 : start] = swallowed[0]
            phones[start:end] = PHONES[SILENCE]
    return phones


def halves(phones: Ints, frames: int) -> Ints:
    """[hops] to [frames, 2], the commonest phone of each half frame; one wholly inside a frame is kept if it can be."""
    fine = 8  # samples of a half
    hops = np.minimum(((np.arange(frames * 2 * fine) + 0.5) * HALF / fine).astype(int), len(phones) - 1)
    grid = phones[hops].reshape(frames, 2 * fine)
    pairs = np.zeros((frames, 2), np.int64)
    for frame, row in enumerate(grid):
        pair = [int(np.bincount(half).argmax()) for half in (row[:fine], row[fine:])]
        cuts = [0, *(np.flatnonzero(np.diff(row)) + 1), 2 * fine]
        for start, end in pairwise(cuts[1:-1]):
            phone = int(row[start])
            if end - start >= 4 and phone and phone not in pair:
                side = 0 if min(end, fine) - start >= end - max(start, fine) else 1
                if pair[side] in (pair[1 - side], row[0] if side == 0 else row[-1]):
                    pair[side] = phone
        pairs[frame] = pair
    return pairs


def middles(pitch: Floats, frames: int) -> Floats:
    """[hops] to [frames, 2], the pitch in the middle of each half frame; 0 after the end."""
    hops = ((np.arange(2 * frames) + 0.5) * HALF).astype(int)
    return np.where(hops < len(pitch), pitch[np.minimum(hops, len(pitch) - 1)], 0).reshape(frames, 2)


@cache
def teacher():  # type: ignore[no-untyped-def]
    """The teacher, with the durations as a seventh output."""
    import onnx
    from hibari import Hibari, tts

    graph = onnx.load(Path(tts.ASSETS) / "hibari.onnx")
    rounded = next(node.output[0] for node in graph.graph.node if node.op_type == "Round")
    graph.graph.output.append(onnx.helper.make_tensor_value_info(rounded, onnx.TensorProto.FLOAT, None))
    return Hibari(model=graph.SerializeToString(), threads=1)


@cache
def symbols() -> dict[int, str]:
    return {number: symbol for symbol, number in teacher().vocab.items()}


if __name__ == "__main__":
    main()
