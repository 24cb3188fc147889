"""Audio in and out: every format and rate becomes mono 24 kHz, and unusable audio is refused."""

import io
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qwen3_tts_ov import AudioError, audio

RATE = 24_000


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def loudness(waveform: np.ndarray, hertz: float) -> float:
    """The amplitude of one frequency."""
    clock = np.arange(len(waveform)) / RATE
    return 2 * abs(np.mean(waveform * np.exp(-2j * np.pi * hertz * clock)))


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
def test_every_format_and_rate_keeps_pitch_level_and_length(tmp_path, rate, ending):
    if ending == "mp3" and rate == 96_000:
        pytest.skip("MP3 has no 96 kHz")
    path = tmp_path / f"tone.{ending}"
    soundfile.write(path, tone(rate), rate)
    loaded = audio.load(path, RATE)
    assert loaded.dtype == np.float32
    assert len(loaded) - RATE in (0, 1) or (
        ending == "mp3" and abs(len(loaded) - RATE) < 3000
    )  # MP3 pads to its own frames
    assert loudness(loaded[4000:20000], 440) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    ("rate", "samples", "official"),  # lengths that librosa gives, one of them owing to floating-point rounding
    [(16_000, 16_000, 24_000), (16_000, 16_007, 24_011), (44_100, 44_100, 24_001), (44_100, 44_107, 24_004)],
)
def test_resampling_gives_the_official_length(rate, samples, official):
    assert len(audio.load((tone(rate, 2)[:samples], rate), RATE)) == official


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_resampling_equals_librosa_with_its_default_resampler(rate):
    librosa = pytest.importorskip("librosa", reason="librosa is only in the reference environment")
    samples = np.random.default_rng(0).standard_normal(rate).astype(np.float32) / 4
    expected = librosa.resample(samples, orig_sr=rate, target_sr=RATE)
    np.testing.assert_array_equal(audio.load((samples, rate), RATE), expected)


def test_channels_are_averaged():
    stereo = np.stack([tone(RATE), -0.5 * tone(RATE)], axis=1)
    np.testing.assert_allclose(audio.load((stereo, RATE), RATE), 0.25 * tone(RATE), atol=1e-7)


def test_channels_that_cancel_or_are_silent_are_left_out_and_an_offset_is_removed(caplog):
    for samples, told in (
        (np.stack([tone(RATE), -tone(RATE)], axis=1), "channel 1 alone is used"),
        (np.stack([0 * tone(RATE), tone(RATE)], axis=1), "channel 1 is silent and left out"),
        (tone(RATE) + 0.2, "a constant offset of 0.2 was taken out"),
    ):
        caplog.clear()
        np.testing.assert_allclose(audio.load((samples, RATE), RATE), tone(RATE), atol=1e-5)
        assert [told in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("kind", "full_scale"), [(np.int16, 2**15 - 1), (np.int32, 2**31 - 1), (np.float64, 1), (np.float16, 1)]
)
def test_integer_samples_are_scaled_to_full_scale_one(kind, full_scale):
    loaded = audio.load(((tone(RATE).astype(np.float64) * full_scale).astype(kind), RATE), RATE)
    np.testing.assert_allclose(loaded, tone(RATE), atol=1e-3)


def test_silence_around_speech_goes_but_for_a_tenth_of_a_second():
    padded = np.pad(tone(RATE), (2 * RATE, RATE)) + np.float32(0.003 * np.abs(tone(RATE)).max())  # -50 dB
    found = audio.trimmed(padded, RATE)
    assert len(found) == pytest.approx(1.2 * RATE, abs=0.04 * RATE)
    assert np.abs(found[: RATE // 12]).max() < np.abs(found[RATE // 8 : RATE // 4]).max() / 50
    np.testing.assert_array_equal(audio.trimmed(tone(RATE), RATE), tone(RATE))


def test_silence_is_the_middle_value_of_unsigned_bytes():
    loaded = audio.load((np.round(tone(RATE) * 127.5 + 127.5).astype(np.uint8), RATE), RATE)
    np.testing.assert_allclose(loaded, tone(RATE), atol=0.01)


@pytest.mark.parametrize(("ending", "subtype"), [("wav", "PCM_16"), ("flac", "PCM_16")])
def test_a_written_file_reads_back_within_16_bits(tmp_path, ending, subtype):
    path = tmp_path / f"speech.{ending}"
    audio.write(path, tone(RATE), RATE)
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (RATE, 1, subtype, RATE)
    np.testing.assert_allclose(soundfile.read(path)[0], tone(RATE), atol=2**-15)


@pytest.mark.parametrize("ending", ["pcm", "raw"])
def test_raw_pcm_is_signed_16_bit_little_endian(tmp_path, ending):
    path = tmp_path / f"speech.{ending}"
    audio.write(path, tone(RATE), RATE)
    samples = np.frombuffer(path.read_bytes(), "<i2")
    np.testing.assert_allclose(samples / 32768, tone(RATE), atol=2**-14)
    assert np.abs(np.frombuffer(audio.pcm16(tone(RATE)), "<i2") - samples.astype(int)).max() <= 1


def test_samples_beyond_full_scale_are_clipped_and_do_not_wrap(tmp_path):
    loud = 2 * tone(RATE)
    audio.write(tmp_path / "loud.wav", 4 * loud, RATE)
    assert soundfile.read(tmp_path / "loud.wav")[0].min() == -1.0
    assert np.frombuffer(audio.pcm16(4 * loud), "<i2").min() == -32767


def test_chunks_written_one_by_one_make_the_same_file_as_the_whole(tmp_path):
    audio.write(tmp_path / "whole.wav", tone(RATE), RATE)
    with audio.Writer(tmp_path / "chunks.wav", RATE) as writer:
        for chunk in np.array_split(tone(RATE), 7):
            writer.write(chunk)
    assert (tmp_path / "chunks.wav").read_bytes() == (tmp_path / "whole.wav").read_bytes()


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "speech.wav"
    audio.write(path, tone(RATE), RATE)
    before = path.read_bytes()
    with pytest.raises(KeyError), audio.Writer(path, RATE) as writer:
        writer.write(tone(RATE, 5))
        raise KeyError
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["speech.wav"]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that replaces PATH, with only the programs that a shell script needs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}")
    return folder


def install(folder: Path, script: str) -> None:
    path = folder / "aplay"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_the_player_program_receives_every_sample(programs, tmp_path):
    install(programs, f"/bin/cat > {tmp_path}/heard; echo $@ > {tmp_path}/arguments")
    with audio.Player(RATE) as player:
        player.write(tone(RATE))
        player.write(tone(RATE))
    assert (tmp_path / "heard").read_bytes() == 2 * audio.pcm16(tone(RATE))
    assert "24000" in (tmp_path / "arguments").read_text()


def test_a_player_without_an_audio_device_reports_why(programs):
    install(programs, "echo 'audio open error: No such file or directory' >&2; exit 1")
    with pytest.raises(AudioError, match="aplay cannot play: audio open error"), audio.Player(RATE) as player:
        for _ in range(100):
            player.write(tone(RATE))


def test_without_a_player_program_the_choices_are_named(programs):
    with pytest.raises(AudioError, match=r"install one of .*aplay.* or write a file"):
        audio.Player(RATE)


def recording(samples: np.ndarray, rate: int = RATE, **how: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", **how)
    return buffer.getvalue()


BAD_FILES = {
    "empty": (b"", "cannot read it as audio"),
    "text": (b"this is no recording at all, only text", "cannot read it as audio"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(100), "cannot read it as audio"),
    "cut header": (recording(tone(RATE))[:30], "cannot read it as audio"),
    "no samples": (recording(tone(RATE)[:0]), r"too short, 0.00 s; at least 0.5 s"),
    "too short": (recording(tone(RATE, 0.4)), r"too short, 0.40 s"),
    "too long": (recording(tone(8_000, 200), 8_000), r"too long, 200 s; cut it to at most 60 s"),
    "silent": (recording(np.zeros(RATE)), "it is silent"),
    "nearly silent": (recording(tone(RATE) / 1000), "it is silent"),
    "click": (recording(np.eye(1, RATE, RATE // 2)[0]), "it is silent but for 0.02 s"),
    "int16 as floats": (
        recording(32767 * tone(RATE), subtype="FLOAT"),
        "its samples reach 16383.5, and full scale is 1",
    ),
    "nan": (recording(np.full(RATE, np.nan, np.float32), subtype="FLOAT"), "NaN or infinite"),
    "infinite": (recording(np.full(RATE, np.inf, np.float32), subtype="FLOAT"), "NaN or infinite"),
    "absurd rate": (recording(tone(RATE), 100), r"too long|not plausible"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_recording_that_cannot_be_used_is_named_with_the_reason(tmp_path, case):
    content, message = BAD_FILES[case]
    path = tmp_path / "reference.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=message) as error:
        audio.load(path, RATE)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


BAD_ARRAYS = {
    "three axes": ((np.ones((2, 2, RATE)), RATE), "neither"),
    "channels first": ((np.ones((2, RATE)), RATE), "neither"),
    "no axis": ((np.float32(1), RATE), "neither"),
    "complex": ((tone(RATE).astype(complex), RATE), "complex128"),
    "text": ((["a", "b"], RATE), "float or integer samples"),
    "fractional rate": ((tone(RATE), 24_000.5), "whole number of Hz"),
    "no rate": ((tone(RATE), None), "whole number of Hz"),
    "zero rate": ((tone(RATE), 0), "not plausible"),
    "kilohertz": ((tone(RATE), 24), "24 Hz is not plausible"),
    "nan": ((np.full(RATE, np.nan), RATE), "NaN"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_an_array_that_cannot_be_used_is_refused(case):
    source, message = BAD_ARRAYS[case]
    with pytest.raises(AudioError, match=message):
        audio.load(source, RATE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("speech.mp4", r"cannot write .mp4; the endings are .wav, .flac, .pcm, .raw"),
        ("speech", "a file without ending"),
        ("missing/speech.wav", "there is no folder"),
        ("folder.wav", "it is a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_spoken(tmp_path, name, message):
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(AudioError, match=message):
        audio.Writer(tmp_path / name, RATE)


def test_a_missing_file_and_a_folder_have_different_messages(tmp_path):
    with pytest.raises(AudioError, match="there is no such file"):
        audio.load(tmp_path / "nothing.wav", RATE)
    with pytest.raises(AudioError, match="it is a folder"):
        audio.load(tmp_path, RATE)
