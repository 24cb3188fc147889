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

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..speech import Outcome
    from ..synthesizer import Synthesizer

commands = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

BundleArgument = Annotated[str, typer.Argument(help="A bundle's folder or Hub id.")]
Revision = Annotated[str | None, typer.Option(help="Of a Hub bundle: a branch, tag or commit.")]
Devices = Annotated[
    list[str] | None, typer.Option("--device", "-d", help="CPU, GPU, NPU, AUTO ...; or component=DEVICE. Repeatable.")
]
Properties = Annotated[
    list[str] | None, typer.Option("--property", help="OpenVINO KEY=VALUE, or component.KEY=VALUE. Repeatable.")
]
AllowUrl = Annotated[bool, typer.Option("--allow-url", help="Fetch a recording that is given as an https URL.")]
AsJson = Annotated[bool, typer.Option("--json", help="The result as JSON.")]


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
            help="A voice of the bundle, see `voices`; or a recording (`-` is stdin) or saved voice to clone."
        ),
    ] = None,
    allow_url: AllowUrl = False,
    language: Annotated[str, typer.Option(help="A language of the bundle; see `languages`.")] = "auto",
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
    loaded = _open(bundle, revision, verify=True)
    fields = Fields("--voice", "--instruct", "--ref-text")
    said_by = _recording(voice, allow_url) if voice and loaded.kind == "base" else voice
    check_request(loaded.model, spoken, said_by, instruct, language, ref_text, fields)
    inputs = [path for path in (file, path_of(said_by)) if path is not None]
    outlets = outlets_for(output, play, stream, loaded.sample_rate, inputs)
    synthesizer = _compile(loaded, device, properties, _slots_for(loaded, spoken, max_frames))
    speech = synthesizer.stream(spoken, said_by, instruct, language, ref_text, seed=seed, max_frames=max_frames)
    outcome = pour(speech, outlets)
    if as_json:
        print(
            json.dumps(_summary(outcome, output), indent=2, sort_keys=True), file=sys.stderr if stream else sys.stdout
        )
    else:
        ended = "ended by itself" if outcome.stop_reason == "eos" else "cut at the frame limit"
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

    loaded = _open(bundle, revision, verify=True)
    check_recording(loaded.model, ref_text)
    source = _recording(recording, allow_url)
    if isinstance(source, str):
        check_named(source)
    check_file(output, [ENDING], filter(None, [path_of(source)]))
    _compile(loaded, device, None).voice_prompt(source, ref_text).save(output)
    people.print(f"{output}: saved; use it with `say --voice {output}`")


@commands.command()
def voices(bundle: BundleArgument, revision: Revision = None, as_json: AsJson = False) -> None:
    """List the voices of a custom-voice bundle."""
    _print_list(_open(bundle, revision).speakers, as_json)


@commands.command()
def languages(bundle: BundleArgument, revision: Revision = None, as_json: AsJson = False) -> None:
    """List the languages and dialects of a bundle."""
    _print_list(["auto", *_open(bundle, revision).languages], as_json)


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

    loaded = _open(bundle, revision)
    manifest = loaded.manifest
    if as_json:
        print(json.dumps(manifest, indent=2, sort_keys=True))
        return
    source = manifest["source"]
    size = sum(entry["size"] for entry in manifest["files"].values())
    rows = {
        "bundle": manifest["bundle_id"],
        "variant": f"{manifest['variant']} ({manifest['kind']}), {manifest['precision']}",
        "source": f"{source.get('repo')} at {source.get('revision')}",
        "size": f"{size / 1e6:.1f} MB",
        "needs": f"OpenVINO {manifest['minimum_openvino']} or later",
        "speech": f"{loaded.sample_rate} Hz, {loaded.frames_per_second:g} frames a second",
        "voices": ", ".join(loaded.speakers) or "none by name",
        "default voice": loaded.default_voice or "none",
        "languages": ", ".join(loaded.languages),
        "components": ", ".join(loaded.components),
        "many at once": why_alone("CPU") or "on a CPU, in one pass over the weights",
    }
    _print_table(rows.items())


@commands.command()
def verify(bundle: BundleArgument, revision: Revision = None) -> None:
    """Check every file of a bundle against its manifest, and the files of its release against SHA256SUMS."""
    loaded = _open(bundle, revision, verify=True)
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
    print(_open(repository, revision, verify=True).folder)


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

    loaded = _open(bundle, revision, verify=True)
    placement = _parse_devices(device or []), _parse_properties(properties or [])
    with people.status("Measuring ..."):
        figures = bench.measure(loaded, *placement, text or bench.TEXT, rounds, frames)
    if as_json:
        print(json.dumps(figures, indent=2, sort_keys=True))
    else:
        _print_table((name.replace("_", " "), _spell(value)) for name, value in figures.items())


@commands.command()
def serve(
    bundle: BundleArgument,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is everywhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    voices: Annotated[Path | None, typer.Option(help="A folder of voices saved by `voice`, to clone.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="QWEN3_TTS_API_KEY", help="The key that clients must send.")
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Requests that speak at a time, in one pass; by default by cores and memory."),
    ] = None,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; more are answered 503.")] = 16,
    max_characters: Annotated[int, typer.Option(min=1, help="Of a text.")] = 4096,
    cors: Annotated[
        list[str] | None, typer.Option(help="An origin whose web pages may send requests; * is any. Repeatable.")
    ] = None,
    revision: Revision = None,
    device: Devices = None,
    properties: Properties = None,
) -> None:
    """Serve speech over HTTP as OpenAI does: /v1/audio/speech, /v1/audio/voices, /v1/models, /health, /metrics."""
    try:
        from . import server
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        raise RequestError(f"{missing} is missing; pip install 'qwen3-tts-ov[serve]'") from None

    loaded = _open(bundle, revision, verify=True)
    if (voices is None) == (loaded.kind == "base"):
        raise RequestError("a base bundle needs --voices, a folder of saved voices; no other kind takes it")
    prompts = None if voices is None else server.load_voices(voices)
    if host not in ("127.0.0.1", "::1", "localhost") and not api_key:
        people.print(f"there is no API key: anyone who can reach {host} can use this server")
    listener = server.listen(host, port)  # a port in use is told before the graphs are compiled
    slots = server.default_slots() if slots is None else slots
    application = server.application(
        _compile(loaded, device, properties, slots),
        voices=prompts,
        api_key=api_key,
        slots=slots,
        queue=queue,
        max_characters=max_characters,
        cors=cors or (),
        aliases=[bundle, loaded.manifest["variant"], loaded.manifest["bundle_id"]],
    )
    server.serve(application, listener)


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


def _open(source: str, revision: str | None, verify: bool = False) -> Bundle:
    from ..bundle import Bundle

    return Bundle.load(source, revision, verify=verify)


def _compile(bundle: Bundle, device: list[str] | None, properties: list[str] | None, slots: int = 1) -> Synthesizer:
    from ..synthesizer import Synthesizer

    with people.status(f"Compiling {bundle.model.name} ..."):
        return Synthesizer(bundle, _parse_devices(device or []), _parse_properties(properties or []), slots=slots)


def _slots_for(bundle: Bundle, spoken: str, max_frames: int | None) -> int:
    """As many slots as a text has pieces that can be spoken at once."""
    from .. import synthesizer, text

    if max_frames is not None or bundle.kind == "voice_design":
        return 1
    pieces = text.split(text.clean(spoken), synthesizer.PIECE_SECONDS)
    return min(len(pieces), synthesizer.DEFAULT_SLOTS)


def _parse_devices(given: list[str]) -> dict[str, str]:
    """`GPU` is the default device, `talker=GPU` that of one component."""
    split = (item.rpartition("=") for item in given)
    return {component or "default": device for component, _, device in split}


def _parse_properties(given: list[str]) -> dict[str, dict[str, str]]:
    """`KEY=VALUE` is for every component, `talker.KEY=VALUE` for one."""
    parsed: dict[str, dict[str, str]] = {}
    for item in given:
        name, equals, value = item.partition("=")
        component, _, key = name.rpartition(".")
        if not key or not equals:
            raise RequestError(f"--property {item}: write it as KEY=VALUE or component.KEY=VALUE")
        parsed.setdefault(component or "default", {})[key] = value
    return parsed


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
