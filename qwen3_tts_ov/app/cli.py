"""The command `qwen3-tts-ov`: speak from a shell; inspect, fetch and check bundles; measure; serve.

Speech goes to files or stdout, messages for people to stderr. An error is one line and exit code 1.
"""

from __future__ import annotations

import codecs
import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..errors import Qwen3TTSError, RequestError
from .console import outlets_for, people, pour
from .options import (
    AllowUrl,
    AsJson,
    BundleArgument,
    Devices,
    Properties,
    Revision,
    compile_bundle,
    open_bundle,
    parse_devices,
    parse_properties,
)
from .serve import serve

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..speech import Outcome

commands = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
INTRODUCTION = "Hello, my name is {name}. This is how I sound."


def _complete_voice(context: typer.Context, incomplete: str) -> list[str]:
    return _names_in(context, "speakers", incomplete)


def _complete_language(context: typer.Context, incomplete: str) -> list[str]:
    return _names_in(context, "languages", incomplete)


def _names_in(context: typer.Context, kind: str, incomplete: str) -> list[str]:
    """Names that a shell may complete, from the manifest of the bundle on the same line; files where there are none."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # nobody expects the Tab key to download a bundle
    try:
        # The arguments are not parsed yet: the option at the end of the line still lacks its value.
        found = getattr(open_bundle(context.args[0], context.params.get("revision")), kind)
    except (Qwen3TTSError, IndexError):
        return []
    return [name for name in found if name.startswith(incomplete)]


def app(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line. An error that a user can cause is one line on stderr and exit code 1."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # silences its retries; their outcome is reported once
    try:
        sys.exit(commands(arguments or ["--help"], prog_name="qwen3-tts-ov", standalone_mode=False))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of stdout is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Qwen3TTSError, OSError) as error:
        _fail(str(error))
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's usage errors, from the click it bundles
            raise
        context = getattr(error, "ctx", None)
        _fail(f"{error.format_message()} (see {context.command_path if context else 'qwen3-tts-ov'} --help)")


@commands.command()
def say(
    bundle: BundleArgument,
    text: Annotated[str | None, typer.Argument(help="What to say; `-` reads stdin.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="A text file to say instead.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="WAV, FLAC or PCM [speech.wav].")] = None,
    play: Annotated[bool, typer.Option("--play", help="Play it while it is made.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Raw 16-bit mono PCM to stdout as it is made.")] = False,
    voice: Annotated[
        str | None,
        typer.Option(
            autocompletion=_complete_voice,
            help="A voice of the bundle, see `voices`; or a recording (`-` is stdin) or saved voice to clone.",
        ),
    ] = None,
    allow_url: AllowUrl = False,
    language: Annotated[
        str, typer.Option(autocompletion=_complete_language, help="A language of the bundle; see `languages`.")
    ] = "auto",
    instruct: Annotated[str | None, typer.Option(help="How to speak, or a description of the voice.")] = None,
    ref_text: Annotated[str | None, typer.Option(help="What the recording says; clones it more closely.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same speech.")] = None,
    max_frames: Annotated[int | None, typer.Option(help="Stop after this many frames of 80 ms.")] = None,
    revision: Revision = None,
    device: Devices = None,
    properties: Properties = None,
    as_json: AsJson = False,
) -> None:
    """Speak a text."""
    from ..recording import path_of
    from ..request import Fields, check_request

    if text == voice == "-":
        raise RequestError("stdin is either the text or the recording; give one of them as a file")
    spoken = _read_text(text, file)
    if output is None and not play and not stream:
        output = Path("speech.wav")
    loaded = open_bundle(bundle, revision, verify=True)
    fields = Fields("--voice", "--instruct", "--ref-text")
    said_by = _recording(voice, allow_url) if voice and loaded.kind == "base" else voice
    check_request(loaded.model, spoken, said_by, instruct, language, ref_text, fields)
    inputs = [path for path in (file, path_of(said_by)) if path is not None]
    outlets = outlets_for(output, play, stream, loaded.sample_rate, inputs)
    synthesizer = compile_bundle(loaded, device, properties, _slots_for(loaded, spoken, max_frames))
    speech = synthesizer.stream(spoken, said_by, instruct, language, ref_text, seed=seed, max_frames=max_frames)
    outcome = pour(speech, outlets)
    if as_json:
        print(
            json.dumps(_summary(outcome, output), indent=2, sort_keys=True), file=sys.stderr if stream else sys.stdout
        )
    else:
        ended = {
            "eos": "ended by itself",
            "max_frames": "cut at the frame limit",
            "cache_full": "cut where the model's cache was full",
        }[outcome.stop_reason]
        people.print(
            f"{f'{output}: ' if output else ''}{outcome.duration:.2f} s of speech in {outcome.timings.total:.2f} s, "
            f"real-time factor {outcome.real_time_factor:.2f}, first audio after {outcome.timings.first_audio:.2f} s, "
            f"{ended}, seed {outcome.seed}"
        )


@commands.command()
def voice(
    bundle: BundleArgument,
    recording: Annotated[str, typer.Argument(help="3 to 15 seconds of clean speech; `-` is stdin.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The voice prompt to write, .safetensors.")],
    ref_text: Annotated[str | None, typer.Option(help="What the recording says; clones it more closely.")] = None,
    allow_url: AllowUrl = False,
    revision: Revision = None,
    device: Devices = None,
) -> None:
    """Save the voice of a recording, to be cloned later without the recording."""
    from ..output import check_file
    from ..recording import check_named, path_of
    from ..request import check_recording
    from ..voice import ENDING

    loaded = open_bundle(bundle, revision, verify=True)
    check_recording(loaded.model, ref_text)
    source = _recording(recording, allow_url)
    if isinstance(source, str):
        check_named(source)
    check_file(output, [ENDING], filter(None, [path_of(source)]))
    compile_bundle(loaded, device, None).voice_prompt(source, ref_text).save(output)
    people.print(f"{output}: saved; use it with `say --voice {output}`")


@commands.command()
def voices(
    bundle: BundleArgument,
    play: Annotated[bool, typer.Option("--play", help="Let each say its name.")] = False,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """List the voices of a custom-voice bundle."""
    loaded = open_bundle(bundle, revision, verify=play)
    if not play:
        _print_list(loaded.speakers, as_json)
        return
    if as_json or not loaded.speakers:
        raise RequestError(
            "give --play or --json, not both" if as_json else f"a {loaded.kind} bundle has no voices by name to play"
        )
    outlets = outlets_for(None, True, False, loaded.sample_rate)
    synthesizer = compile_bundle(loaded, None, None)
    for name in loaded.speakers:
        print(name, flush=True)
        pour(synthesizer.stream(INTRODUCTION.format(name=name.replace("_", " ").title()), name, seed=0), outlets)


@commands.command()
def languages(bundle: BundleArgument, revision: Revision = None, as_json: AsJson = False) -> None:
    """List the languages and dialects of a bundle."""
    _print_list(["auto", *open_bundle(bundle, revision).languages], as_json)


@commands.command()
def devices(as_json: AsJson = False) -> None:
    """List OpenVINO's devices on this machine."""
    from ..engine import devices

    found = devices()
    print(json.dumps(found, indent=2) if as_json else "\n".join(f"{key}  {name}" for key, name in found.items()))


@commands.command()
def info(bundle: BundleArgument, revision: Revision = None, as_json: AsJson = False) -> None:
    """Describe a bundle."""
    from ..engine import why_alone

    loaded = open_bundle(bundle, revision)
    manifest = loaded.manifest
    if as_json:
        print(json.dumps(manifest, indent=2, sort_keys=True))
        return
    source = manifest["source"]
    size = sum(entry["size"] for entry in manifest["files"].values())
    fixed = (part.get("sizes", {}) for part in manifest["components"].values())
    rows = {
        "bundle": manifest["bundle_id"],
        "variant": f"{manifest['variant']} ({manifest['kind']}), {manifest['precision']}",
        "layout": ", ".join(
            [manifest["layout"], *(f"{name} {most}" for sizes in fixed for name, most in sizes.items())]
        ),
        "source": f"{source.get('repo')} at {source.get('revision')}",
        "size": f"{size / 1e6:.1f} MB",
        "needs": f"OpenVINO {manifest['minimum_openvino']} or later",
        "speech": f"{loaded.sample_rate} Hz, {loaded.frames_per_second:g} frames a second",
        "voices": ", ".join(loaded.speakers) or "none by name",
        "default voice": loaded.default_voice or "none",
        "languages": ", ".join(loaded.languages),
        "components": ", ".join(loaded.components),
        "many at once": why_alone(loaded.model, "CPU") or "on a CPU, in one pass over the weights",
    }
    _print_table(rows.items())


@commands.command()
def verify(bundle: BundleArgument, revision: Revision = None) -> None:
    """Check every file of a bundle against its manifest, and the files of its release against SHA256SUMS."""
    loaded = open_bundle(bundle, revision, verify=True)
    loaded.check_papers()
    if foreign := loaded.foreign():
        people.print(
            f"{loaded.folder}: not part of the bundle, and never opened: {', '.join(foreign)}; move "
            f"{'it' if len(foreign) == 1 else 'them'} away",
            markup=False,
        )
    print(f"{loaded.folder}: {len(loaded.manifest['files'])} files as listed, bundle {loaded.manifest['bundle_id']}")


@commands.command()
def pull(
    repository: Annotated[str, typer.Argument(help="The bundle's id on the Hugging Face Hub, owner/name.")],
    revision: Revision = None,
) -> None:
    """Fetch a bundle from the Hub and check it. An interrupted fetch continues when it is run again."""
    print(open_bundle(repository, revision, verify=True).folder)


@commands.command()
def bench(
    bundle: BundleArgument,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds, after one that warms up.")] = 3,
    frames: Annotated[int, typer.Option(min=2, help="Frames of 80 ms in each round, at most.")] = 64,
    text: Annotated[str | None, typer.Option(help="What to say.")] = None,
    revision: Revision = None,
    device: Devices = None,
    properties: Properties = None,
    as_json: AsJson = False,
) -> None:
    """Measure times and memory: best and median of a few rounds, compared with just reading the weights."""
    from . import bench

    loaded = open_bundle(bundle, revision, verify=True)
    placement = parse_devices(device or []), parse_properties(properties or [])
    with people.status("Measuring ..."):
        figures = bench.measure(loaded, *placement, text or bench.TEXT, rounds, frames)
    if as_json:
        print(json.dumps(figures, indent=2, sort_keys=True))
    else:
        _print_table((name.replace("_", " "), _spell(value)) for name, value in figures.items())


commands.command()(serve)


def _read_text(text: str | None, file: Path | None) -> str:
    if (text is None) == (file is None):
        raise RequestError("give a text to say, `-` for stdin, or --file; one of them")
    if file is None and text != "-":
        return str(text)
    try:
        data = sys.stdin.buffer.read() if file is None else file.read_bytes()
        # Windows' editors and shells write UTF-16, with a mark.
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{file or 'stdin'}: it is not {'UTF-16' if utf16 else 'UTF-8'} text (byte {error.start}); convert it first"
        ) from None
    except OSError as error:
        raise RequestError(f"{file}: cannot be read ({error.strerror})") from None


def _recording(name: str, allow_url: bool) -> str | bytes:
    """A recording as it is named on the command line: stdin and, where it is allowed, a URL are read."""
    from ..recording import fetch, is_on_the_web

    if name == "-":
        return sys.stdin.buffer.read()
    return fetch(name) if allow_url and is_on_the_web(name) else name


def _slots_for(bundle: Bundle, spoken: str, max_frames: int | None) -> int:
    """As many slots as a text has pieces that can be spoken at once."""
    from .. import synthesizer, text

    if max_frames is not None:
        return 1
    pieces = text.split(text.clean(spoken), synthesizer.piece_seconds(bundle.model))
    return min(len(pieces), synthesizer.DEFAULT_SLOTS)


def _summary(outcome: Outcome, output: Path | None) -> dict[str, Any]:
    return {
        "output": None if output is None else str(output),
        "frames": len(outcome.codes),
        "duration": outcome.duration,
        "sample_rate": outcome.sample_rate,
        "stop_reason": outcome.stop_reason,
        "seed": outcome.seed,
        "first_audio_seconds": outcome.timings.first_audio,
        "total_seconds": outcome.timings.total,
        "real_time_factor": outcome.real_time_factor,
        "seconds_by_component": outcome.timings.seconds,
        "calls_by_component": outcome.timings.calls,
    }


def _spell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_spell(item)}" for name, item in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _print_list(items: Sequence[str], as_json: bool) -> None:
    print(json.dumps(items) if as_json else "\n".join(items))


def _print_table(rows: Iterable[tuple[str, str]]) -> None:
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(name, value)
    Console(highlight=False).print(table)


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)
