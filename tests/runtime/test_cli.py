"""The command line: what it prints, writes and refuses."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qwen3_tts_ov import bundle, engine
from qwen3_tts_ov.app import cli

FRAME = 1920
ROOT = Path(cli.__file__).parents[2]


@dataclass
class Done:
    code: int
    out: bytes
    err: str


Run = Callable[..., Done]
read_tokenizer = cache(bundle._read_tokenizer)  # half a second, and many commands read the same few


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the command."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(
    work: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Run:
    """`run("voices", folder)`: the program's entry point, in this process; tests that need a real one start it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(user_cache))
    monkeypatch.setattr(bundle, "_read_tokenizer", read_tokenizer)

    def run(*arguments: object, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(stdin)))
        with pytest.raises(SystemExit) as exit_:
            cli.app([str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        return Done(int(exit_.value.code or 0), out, err.decode())

    return run


@pytest.fixture
def custom_voice(artifact: Callable[..., Path]) -> Path:
    return artifact("bundle", "tiny-custom-voice", "int8")


@pytest.fixture
def base(artifact: Callable[..., Path]) -> Path:
    return artifact("bundle", "tiny-base", "int8")


@pytest.fixture
def design(artifact: Callable[..., Path]) -> Path:
    return artifact("bundle", "tiny-voice-design", "int8")


@pytest.fixture
def voice(custom_voice: Path) -> str:
    return json.loads((custom_voice / "manifest.json").read_text())["speakers"][0]


def succeed(done: Done) -> str:
    assert done.code == 0, done.err
    return done.out.decode()


def test_say_writes_a_file_and_reports_the_real_time_factor(run, custom_voice, voice, work):
    done = run("say", custom_voice, "Hello.", "--voice", voice, "--max-frames", 2, "--seed", 3, "-o", "hello.wav")
    succeed(done)
    samples, rate = soundfile.read(work / "hello.wav")
    assert (len(samples), rate) == (2 * FRAME, 24_000)
    told = done.err
    assert told.startswith("hello.wav: 0.16 s of speech in ")
    assert "real-time factor" in told
    assert "cut at the frame limit, seed 3" in told


def test_say_reads_text_from_an_argument_a_file_or_stdin(run, custom_voice, voice, work):
    text = "Grüße, 世界."
    (work / "text.txt").write_text(text, encoding="utf-8")
    options = ("--voice", voice, "--seed", 1, "--max-frames", 2, "--stream")
    spoken = [
        run("say", custom_voice, text, *options),
        run("say", custom_voice, "--file", "text.txt", *options),
        run("say", custom_voice, "-", *options, stdin=text.encode()),
    ]
    assert len({done.out for done in spoken}) == 1
    assert len(spoken[0].out) == 2 * FRAME * 2, "16-bit samples and nothing else"
    assert np.frombuffer(spoken[0].out, "<i2").any()


def test_say_with_only_a_text_writes_speech_wav_and_json_reports_all(run, custom_voice, work):
    told = json.loads(succeed(run("say", custom_voice, "Hi.", "--max-frames", 2, "--json")))
    assert (work / "speech.wav").exists()
    assert told["output"] == "speech.wav"
    assert told["frames"] == 2
    assert told["stop_reason"] in ("eos", "max_frames")
    assert told["calls_by_component"]["code_predictor"] == 2
    assert {"seed", "real_time_factor", "first_audio_seconds", "duration"} <= set(told)


def test_a_voice_is_designed_or_cloned_from_a_recording_or_a_saved_prompt(run, design, base, work):
    succeed(run("say", design, "Hi.", "--instruct", "A calm woman.", "--max-frames", 2, "-o", "design.flac"))
    clock = np.arange(48_000) / 16_000
    soundfile.write("me.ogg", 0.3 * np.sin(2 * np.pi * 200 * clock), 16_000)
    reference = ("--ref-text", "What I say here.")
    succeed(run("voice", base, "me.ogg", *reference, "-o", "me.safetensors"))
    common = ("say", base, "Hi.", "--seed", 1, "--max-frames", 2)
    succeed(run(*common, "--voice", "me.ogg", *reference, "-o", "recording.wav"))
    succeed(run(*common, "--voice", "me.safetensors", "-o", "prompt.wav"))
    assert (work / "recording.wav").read_bytes() == (work / "prompt.wav").read_bytes()
    assert soundfile.info(work / "design.flac").frames == 2 * FRAME


def test_bundles_are_described_for_people_and_programs(run, custom_voice, voice):
    assert voice in succeed(run("voices", custom_voice)).splitlines()
    assert "english" in json.loads(succeed(run("languages", custom_voice, "--json")))
    manifest = json.loads((custom_voice / "manifest.json").read_text())
    assert json.loads(succeed(run("info", custom_voice, "--json"))) == manifest
    told = " ".join(succeed(run("info", custom_voice)).split())
    assert manifest["bundle_id"] in told
    assert "default voice serena" in told
    assert manifest["bundle_id"] in succeed(run("verify", custom_voice))
    assert "CPU" in json.loads(succeed(run("devices", "--json")))


@pytest.mark.parametrize(
    "variant",
    [
        "tiny-custom-voice",
        *(pytest.param(each, marks=pytest.mark.prove) for each in ("tiny-base", "tiny-voice-design")),
    ],
)
def test_bench_measures_every_kind_of_bundle(run, user_cache, artifact, variant):
    folder = artifact("bundle", variant, "int8")
    figures = json.loads(succeed(run("bench", folder, "--rounds", 2, "--frames", 6, "--json")))
    assert len(figures["frames"]) == 2
    for name in ("talker_ms_a_frame", "code_predictor_ms_a_frame", "speech_decoder_ms_a_frame", "real_time_factor"):
        assert 0 < figures[name]["best"] <= figures[name]["median"]
    for name in ("talker", "code_predictor"):
        assert figures[f"{name}_weights_read_ms_a_frame"]["best"] > 0
        assert figures["threads"][name] >= 1
        held = (folder / f"{name}.bin").stat().st_size / 1e6
        passes = 15 if name == "code_predictor" else 1
        assert 0.3 * held < figures["weights_mb_a_frame"][name] < passes * held
    assert figures["bundle"]["layout"] == "native"
    assert figures["versions"]["openvino"] == version("openvino")
    assert figures["devices"]["CPU"]["full_name"] == engine.devices()["CPU"]
    assert set(figures["placement"].values()) == {"CPU"}
    assert min(figures["compile_cold_seconds"], figures["compile_warm_seconds"]) > 0
    assert figures["peak_memory_mb"] > 50
    assert not list((user_cache / "qwen3-tts-ov").glob("tmp*")), "the cache of the cold start is removed"
    assert "real time factor" in succeed(run("bench", folder, "--rounds", 1, "--frames", 4))


def install(folder: Path, program: str, script: str) -> None:
    """Puts a program into a folder."""
    folder.mkdir(exist_ok=True)
    (folder / program).write_text(f"#!/bin/sh\n{script}\n")
    (folder / program).chmod(0o755)


def test_every_voice_can_be_heard(run, custom_voice, work, monkeypatch):
    install(work / "bin", "pw-cat", f"wc -c >> {work}/heard")
    monkeypatch.setenv("PATH", f"{work / 'bin'}:{os.environ['PATH']}")
    names = succeed(run("voices", custom_voice)).splitlines()
    assert succeed(run("voices", custom_voice, "--play")).splitlines() == names
    heard = [int(count) for count in (work / "heard").read_text().split()]
    assert len(heard) == len(names)
    assert min(heard) >= FRAME * 2


def test_a_terminal_shows_progress_and_the_time_left(custom_voice, user_cache, work):
    ours, theirs = os.openpty()
    told = bytearray()
    with subprocess.Popen(
        [sys.executable, "-m", "qwen3_tts_ov", "say", custom_voice, "Hello, you.", "--max-frames", "60"],
        stderr=theirs,
        env=os.environ
        | {"XDG_CACHE_HOME": str(user_cache), "TERM": "xterm", "COLUMNS": "200", "PYTHONPATH": str(ROOT)},
    ) as program:
        os.close(theirs)
        with suppress(OSError):  # when the program ends
            while data := os.read(ours, 4096):
                told += data
    os.close(ours)
    assert program.returncode == 0, told.decode()
    assert "s spoken, real-time factor" in told.decode()
    assert " left" in told.decode()


# A shell's commands that load the installed completion and print what it offers for the line in $LINE.
SHELLS = {
    "bash": """source ~/.bashrc; read -ra COMP_WORDS <<< "$LINE"; COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _qwen3_tts_ov_completion qwen3-tts-ov; printf '%s\\n' "${COMPREPLY[@]}" """,
    "zsh": """compdef() { }; _arguments() { print -r -- "$@" }; _files() { }; source ~/.zfunc/_qwen3-tts-ov
        words=(${=LINE}); CURRENT=${#words}; _qwen3_tts_ov_completion""",
    "fish": 'complete -C "$LINE"',
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_commands_voices_and_languages(shell, custom_voice, work):
    if shutil.which(shell) is None:
        pytest.skip(f"this machine has no {shell}")
    search = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    home = {"HOME": str(work), "XDG_CONFIG_HOME": str(work / ".config"), "PATH": search, "PYTHONPATH": str(ROOT)}

    def script(commands: str, line: str = "") -> str:
        done = subprocess.run(
            [shell, "-c", commands], capture_output=True, text=True, env=os.environ | home | {"LINE": line}, cwd=work
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    (work / "bundle").symlink_to(custom_voice)
    assert f"{shell} completion installed in" in script("qwen3-tts-ov --install-completion; true")
    assert "_QWEN3_TTS_OV_COMPLETE" in script("qwen3-tts-ov --show-completion; true")
    for line, offered, other in (
        ("qwen3-tts-ov voi", "voices", "verify"),
        ("qwen3-tts-ov say bundle Hi. --voice ry", "ryan", "vivian"),
        ("qwen3-tts-ov say bundle --language ger", "german", "french"),
        ("qwen3-tts-ov say nowhere --voice ry", "", "ryan"),
    ):
        found = script(SHELLS[shell], line)
        assert offered in found
        assert other not in found


def test_devices_and_properties_can_be_chosen_by_component(run, custom_voice, voice):
    options = ("--device", "CPU", "--device", "talker=AUTO", "--property", "talker.INFERENCE_PRECISION_HINT=f32")
    succeed(run("say", custom_voice, "Hi.", "--voice", voice, "--max-frames", 2, *options))


def test_help_lists_every_command(run):
    text = succeed(run())
    for command in ("say", "voice", "voices", "languages", "devices", "info", "verify", "pull", "bench", "serve"):
        assert f"  {command} " in text
        assert "Usage:" in succeed(run(command, "--help"))


# Command lines without the program's name; {} stands for a valid bundle, BASE and DESIGN for other kinds.
BAD_LINES: dict[str, tuple[list[str], str]] = {
    "unknown command": (["sing"], "No such command 'sing'"),
    "misspelt command": (["bnech"], "No such command 'bnech'. Did you mean 'bench'?"),
    "no bundle": (["say"], "Missing argument 'bundle'"),
    "unknown option": (["say", "{}", "Hi.", "--loud"], "No such option: --loud"),
    "seed in words": (["say", "{}", "Hi.", "--seed", "x"], "Invalid value for '--seed'"),
    "no text": (["say", "{}"], "give a text to say"),
    "two texts": (["say", "{}", "Hi.", "--file", "text.txt"], "one of them"),
    "missing text file": (["say", "{}", "--file", "none.txt"], "none.txt: cannot be read (No such file"),
    "text file in Latin-1": (["say", "{}", "--file", "latin1.txt"], "latin1.txt: it is not UTF-8 text (byte 1)"),
    "empty text": (["say", "{}", "", "--voice", "ryan"], "there is nothing to speak"),
    "missing bundle": (["say", "nowhere", "Hi."], "nowhere: there is no such folder"),
    "folder that is no bundle": (["voices", "."], "it has no manifest.json"),
    "unknown voice": (["say", "{}", "Hi.", "--voice", "nobody"], "unknown voice 'nobody'; this bundle has: aiden, "),
    "misspelt voice": (["say", "{}", "Hi.", "--voice", "Rayn"], "unknown voice 'Rayn' (did you mean 'ryan'?); this"),
    "instruction to 0.6B": (["say", "{}", "Hi.", "--instruct", "Calm."], "leave --instruct out or use a 1.7B one"),
    "unknown language": (["say", "{}", "Hi.", "--voice", "ryan", "--language", "elvish"], "unknown language 'elvish'"),
    "misspelt language": (
        ["say", "{}", "Hi.", "--language", "englsh"],
        "unknown language 'englsh' (did you mean 'english'?); this checkpoint has: auto, ",
    ),
    "ref text alone": (["say", "{}", "Hi.", "--ref-text", "x"], "--ref-text belongs to a recording"),
    "clone by custom voice": (["say", "{}", "Hi.", "--voice", "tone.wav"], "only a base bundle clones a recording"),
    "base without voice": (["say", "BASE", "Hi."], "give a recording or a saved voice prompt with --voice"),
    "base with instruction": (["say", "BASE", "Hi.", "--voice", "tone.wav", "--instruct", "x"], "leave --instruct out"),
    "design without words": (["say", "DESIGN", "Hi."], "describe it with --instruct"),
    "design with voice": (["say", "DESIGN", "Hi.", "--voice", "ryan"], "leave --voice out and describe"),
    "two reference texts": (
        ["say", "BASE", "Hi.", "--voice", "bad.safetensors", "--ref-text", "x"],
        "already holds its reference text; leave --ref-text out",
    ),
    "clone of nothing": (["say", "BASE", "Hi.", "--voice", "none.wav"], "none.wav: there is no such file"),
    "clone of a text": (["say", "BASE", "Hi.", "--voice", "latin1.txt"], "cannot read it as audio"),
    "prompt that is none": (
        ["say", "BASE", "Hi.", "--voice", "bad.safetensors"],
        "bad.safetensors: not a voice prompt",
    ),
    "output without ending": (["say", "{}", "Hi.", "--voice", "ryan", "-o", "out"], "out: cannot write a file without"),
    "output as mp4": (["say", "{}", "Hi.", "--voice", "ryan", "-o", "out.mp4"], "out.mp4: cannot write .mp4"),
    "output in no folder": (["say", "{}", "Hi.", "--voice", "ryan", "-o", "no/out.wav"], "there is no folder no"),
    "unknown device": (["say", "{}", "Hi.", "--voice", "ryan", "-d", "TPU"], "there is no device TPU"),
    "unknown component": (["say", "{}", "Hi.", "--voice", "ryan", "-d", "mouth=CPU"], "unknown component 'mouth'"),
    "misspelt component": (["say", "{}", "Hi.", "-d", "talkr=CPU"], "'talkr' (did you mean 'talker'?); this model has"),
    "property without value": (["say", "{}", "Hi.", "--voice", "ryan", "--property", "SPEED"], "write it as KEY=VALUE"),
    "unknown property": (
        ["say", "{}", "Hi.", "--voice", "ryan", "--property", "SPEED=1"],
        "cannot be compiled for CPU",
    ),
    "no frames": (["say", "{}", "Hi.", "--voice", "ryan", "--max-frames", "0"], "max_frames must be"),
    "voice of a custom voice": (["voice", "{}", "tone.wav", "-o", "me.safetensors"], "bundle cannot clone a recording"),
    "voices of a base bundle": (["voices", "BASE", "--play"], "a base bundle has no voices by name to play"),
    "no rounds": (["bench", "{}", "--rounds", "0"], "Invalid value for '--rounds'"),
    "pull of a path": (["pull", "/no/such/thing"], "there is no such folder, and it is not a Hub id"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_an_invalid_command_gets_one_line_and_leaves_no_file(run, custom_voice, base, design, voice, work, case):
    arguments, message = BAD_LINES[case]
    (work / "latin1.txt").write_bytes(b"G\xfc\xdfe")
    (work / "bad.safetensors").write_bytes(b"{}")
    soundfile.write(work / "tone.wav", 0.3 * np.sin(np.arange(48_000) / 20), 24_000)
    before = sorted(os.listdir(work))
    known = {"{}": str(custom_voice), "BASE": str(base), "DESIGN": str(design), "ryan": voice}
    done = run(*(known.get(argument, argument) for argument in arguments))
    assert done.code == 1, done.err
    assert message in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert done.out == b""
    assert sorted(os.listdir(work)) == before


def test_a_closed_pipe_ends_the_program_quietly(custom_voice, voice, user_cache):
    command = f"{sys.executable} -m qwen3_tts_ov say {custom_voice} 'A long story. And more.' --voice {voice} --stream"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -c 100 | wc -c; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        cwd=ROOT,
        env=os.environ | {"XDG_CACHE_HOME": str(user_cache)},
    )
    assert done.stdout.split() == [b"100", b"1"] or done.stdout.split() == [b"100", b"0"], "0 when it ended first"
    assert b"Traceback" not in done.stderr
