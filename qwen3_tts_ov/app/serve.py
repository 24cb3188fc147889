"""The command `serve`: what a server is to load, refused before anything is compiled."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..errors import RequestError
from .console import people
from .options import Devices, Properties, Revision, compile_bundle, open_bundle


def serve(
    bundles: Annotated[list[str], typer.Argument(help="Bundles' folders or Hub ids; the first is the default.")],
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is everywhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    voices: Annotated[Path | None, typer.Option(help="A folder of voices saved by `voice`, to clone.")] = None,
    change_voices: Annotated[
        bool, typer.Option("--change-voices", help="Let clients save voices in that folder, and delete them.")
    ] = False,
    api_key: Annotated[
        str | None, typer.Option(envvar="QWEN3_TTS_API_KEY", help="The key that clients must send.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(min=0, help="GB that loaded bundles may take together [what is free].")
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
    wyoming: Annotated[
        int | None, typer.Option(min=0, max=65535, help="A port on which Home Assistant finds its voices.")
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="A page at / to try the voices.")] = True,
    revision: Revision = None,
    device: Devices = None,
    properties: Properties = None,
) -> None:
    """Serve speech over HTTP as OpenAI does (/v1/audio/speech, /v1/models ...), and on a page in the browser."""
    try:
        from . import server
        from .shelf import Shelf, bundle_slip
        from .voices import Voices

        if wyoming is not None:
            from . import home_assistant  # noqa: F401
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        extra = "wyoming" if missing in ("wyoming", "zeroconf") else "serve"
        raise RequestError(f"{missing} is missing; pip install 'qwen3-tts-ov[{extra}]'") from None

    loaded = {name: open_bundle(name, revision, verify=True) for name in bundles}
    if voices is not None and not any(bundle.kind == "base" for bundle in loaded.values()):
        raise RequestError("--voices is for a base bundle; no other kind takes it")
    if change_voices and voices is None:
        raise RequestError("--change-voices needs --voices, the folder where they are saved")
    saved = None if voices is None else Voices.load(voices, change_voices)
    slots = server.default_slots() if slots is None else slots
    compiled = {name: partial(compile_bundle, bundle, device, properties, slots) for name, bundle in loaded.items()}
    shelf = Shelf(
        [bundle_slip(bundle, compiled[name], [name]) for name, bundle in loaded.items()],
        None if memory is None else round(memory * 1e9),
    )
    if host not in ("127.0.0.1", "::1", "localhost") and (wyoming is not None or not api_key):
        reason = "there is no API key" if not api_key else "Wyoming knows no API key"
        people.print(f"{reason}: anyone who can reach {host} can use this server")
    listener = server.listen(host, port)  # a port in use is told before the graphs are compiled
    shelf.load_default()
    application = server.application(
        shelf,
        voices=saved,
        api_key=api_key,
        slots=slots,
        queue=queue,
        max_characters=max_characters,
        cors=cors or (),
        page=page,
        wyoming=None if wyoming is None else server.listen(host, wyoming),
    )
    server.serve(application, listener)
