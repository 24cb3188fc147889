"""Options of more than one command: the bundle to open, and the devices to compile it for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import RequestError
from .console import people

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..synthesizer import Synthesizer

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


def open_bundle(source: str, revision: str | None, verify: bool = False) -> Bundle:
    """The bundle of a command. Raises BundleError."""
    from ..bundle import Bundle

    return Bundle.load(source, revision, verify=verify)


def compile_bundle(
    bundle: Bundle, device: list[str] | None, properties: list[str] | None, slots: int = 1
) -> Synthesizer:
    """Compiles a bundle as `--device` and `--property` say. Raises DeviceError, RequestError."""
    from ..synthesizer import Synthesizer

    with people.status(f"Compiling {bundle.model.name} ..."):
        return Synthesizer(bundle, parse_devices(device or []), parse_properties(properties or []), slots=slots)


def parse_devices(given: list[str]) -> dict[str, str]:
    """`GPU` is the default device, `talker=GPU` that of one component."""
    split = (item.rpartition("=") for item in given)
    return {component or "default": device for component, _, device in split}


def parse_properties(given: list[str]) -> dict[str, dict[str, str]]:
    """`KEY=VALUE` is for every component, `talker.KEY=VALUE` for one. Raises RequestError."""
    parsed: dict[str, dict[str, str]] = {}
    for item in given:
        name, equals, value = item.partition("=")
        component, _, key = name.rpartition(".")
        if not key or not equals:
            raise RequestError(f"--property {item}: write it as KEY=VALUE or component.KEY=VALUE")
        parsed.setdefault(component or "default", {})[key] = value
    return parsed
