"""Runs every command and Python example of README, docs/, benchmarks/README.md and a model card as a reader would.

What is not available to a test (a Hub repository, a checkpoint of gigabytes, a bucket) is replaced, word by word, by
its counterpart in STANDS_FOR; everything else runs unchanged. Commands that need minutes or a cluster are listed in
ELSEWHERE, with the test that runs them.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import soundfile

from pipeline.stage import ROOT
from qwen3_tts_ov.bundle import verified
from tests.conftest import copied, free_port, until
from tests.doubles.hub import Hub, serving, use

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
CELL = "artifacts/tiny-custom-voice/int8"
STANDS_FOR = {
    # Cells that would have to be built, and the one that is built already.
    r"\b(0\.6b-custom-voice|0\.6b-base|tiny-base|mini-custom-voice|my-voice)\b": "tiny-custom-voice",
    r"artifacts/mini-base/int8/bundle\b": "{base}",
    r"artifacts/mini-voice-design/int8/bundle\b": "{design}",
    r"\bs3://bucket/path\b": "{desk}/remote",
    # Bundles of each kind, by their names in the documents.
    r"\bBUNDLE\b": f"{CELL}/bundle",
    r"\bBASE\b": "{base}",
    r"\bDESIGN\b": "{design}",
    # Of the npu layout one of the base kind is built, which needs a voice; and there is no NPU, but its plugin.
    r"(say) NPU_BUNDLE": r"\1 NPU_BUNDLE --voice me.wav --max-frames 8",
    r"\bNPU_BUNDLE\b": "{npu}",
    r"(qwen3-tts-ov bench)": r"\1 --rounds 1 --frames 4",
    r"--device NPU\b": "--device NPU --property NPU_USE_NPUW=YES --property NPUW_DEVICES=CPU "
    "--property NPUW_ONLINE_PIPELINE=NONE",
    # Where a server listens.
    r"127\.0\.0\.1:8000": "127.0.0.1:{port}",
    r"--wyoming 10200": "--wyoming 0",
    r"(qwen3-tts-ov serve [^;&|]*)": r"\1 --port {port}",
    # Nothing is installed into the environment of the tests; pip only reports what it would do.
    r"^pip install": "pip install --dry-run --quiet --no-deps --no-build-isolation --no-index",
}
LONG = r"make cell .*LAYOUTS=.*|make fleet|qwen3-tts-ov bench NPU_BUNDLE .*"
ELSEWHERE = {
    r"make test": "tests: this run",
    r"make (bench|prove|parity|sweep|sample).*": "tests/test_benchmarks.py, prove_fleet.py, tests/parity: their parts",
    r"make voices": "tests/test_benchmarks.py",
    r"make runtimes .*": "tests/readers, and with the programs tests/programs",
    r"(pip install \.|pip install -c constraints.txt --no-deps Resemblyzer pesq)": "tests/runtime/test_installed.py",
    r"(pipx|uv tool) install .*|pip wheel .*": "tests/runtime/test_installed.py",
    r"qwen3-tts-ov (voices BUNDLE --play|--(install|show)-completion)": "tests/runtime/test_cli.py",
    r"make fleet ADDRESS=.*|.*pipeline\.fleet\.node.*": "tests/fleet/prove_fleet.py",
    r"python -m pipeline\.export variant=\S+": "the fixture `built`, through DVC",
    r"qwen3-tts-ov say NPU_BUNDLE .* --device NPU -o .*": "the next command of that page, which is the same here",
    LONG: "test_a_command_that_takes_long_works",
}


@dataclass(frozen=True)
class Example:
    """A command or a block of Python, and the line of the document on which it starts."""

    text: str
    line: int
    python: bool = False


def examples(document: Path) -> list[Example]:
    """The examples of a document in order; command lines that `\\` continues are joined."""
    found, text = [], document.read_text(encoding="utf-8")
    for block in re.finditer(r"^( *)```(console|python)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        line = text[: block.start(3)].count("\n") + 1
        content = textwrap.dedent(block[3])
        if block[2] == "python":
            found.append(Example(content, line, python=True))
            continue
        for command in re.finditer(r"^\$ ((?:.*\\\n)*.*)$", content, re.MULTILINE):
            typed = re.sub(r"\s+#( .*)?$", "", command[1])
            found.append(Example(typed, line + content[: command.start()].count("\n")))
    return found


def joined(shown: list[Example]) -> list[Example]:
    """The same, but the Python blocks of a page are one program, since later ones use the names of earlier ones."""
    python = [one for one in shown if one.python]
    program = [Example("".join(one.text for one in python), python[-1].line, python=True)] if python else []
    return [one for one in shown if not one.python] + program


class Desk:
    """What a reader has at hand: a checkout with a built cell, a Hub, an environment, and running servers."""

    def __init__(self, folder: Path, words: dict[str, str], environment: dict[str, str]) -> None:
        self.folder, self.words, self.environment = folder, words, environment
        self.servers: list[subprocess.Popen[bytes]] = []

    def spelled(self, text: str) -> str:
        """An example with its placeholders replaced by what this desk has."""
        for word, stands in STANDS_FOR.items():
            text = re.sub(word, stands, text, flags=re.MULTILINE)
        for name, value in self.words.items():
            text = text.replace(f"{{{name}}}", value)
        return text

    def run(self, example: Example) -> None:
        """Runs an example; a server keeps running until the next one starts, or until the end."""
        text = self.spelled(example.text)
        command = [sys.executable, "-c", text] if example.python else ["bash", "-euo", "pipefail", "-c", text]
        if " serve " in text:
            return self.start(command)
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=550, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return None

    def start(self, command: list[str]) -> None:
        """Starts a server and waits until it accepts connections."""
        self.stop()
        server = subprocess.Popen(command, cwd=self.folder, env=self.environment, start_new_session=True)
        self.servers.append(server)

        def listens() -> bool:
            assert server.poll() is None, f"{command[-1]} ended"
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", int(self.words["port"]))) == 0

        until(listens)

    def stop(self) -> None:
        """Stops the servers."""
        while self.servers:
            server = self.servers.pop()
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


@pytest.fixture
def desk(built, artifact, bundle_of, user_cache, tmp_path, tmp_path_factory, monkeypatch) -> Iterator[Desk]:
    bundles = {kind: artifact("bundle", f"tiny-{kind}") for kind in ("base", "voice-design")}
    # Where the desk before it was: in OpenVINO's cache, the same graph at another path is another one.
    folder = copied(built, tmp_path_factory.getbasetemp() / "desk")
    (folder / "params.yaml").write_text("variants: [tiny-custom-voice]\nprecisions: [int8]\nlayouts: []\n")
    (folder / "chapter.txt").write_text("One sentence. Another one.\n")
    samples, rate = soundfile.read(ROOT / "tests" / "data" / "speech-24khz.flac")
    soundfile.write(folder / "me.wav", samples, rate)
    (folder / ".venv").symlink_to(sys.prefix)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "make").write_text(f'#!/bin/sh\nexec {shutil.which("make")} --assume-old=.venv/.installed "$@"\n')
    (programs / "make").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(user_cache))
    with serving(Hub()) as hub:
        use(hub, tmp_path, monkeypatch)
        hub.mirror("owner/name", "1" * 40, folder / CELL / "bundle")
        hub.mirror("owner/base", "2" * 40, bundles["base"])
        hub.repositories["owner/name"].tags["v0.1.0"] = "1" * 40
        words = {
            "desk": str(tmp_path),
            "base": str(bundles["base"]),
            "design": str(bundles["voice-design"]),
            "npu": str(bundle_of("npu")),
            "port": str(free_port()),
        }
        place = Desk(folder, words, dict(os.environ))
        yield place
        place.stop()
    shutil.rmtree(folder)


WITH_EXAMPLES = [document for document in DOCUMENTS if examples(document)]


@pytest.mark.parametrize("document", WITH_EXAMPLES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_of_a_document_works(document, desk, record_property):
    shown = examples(document)
    here = [one for one in shown if not any(re.fullmatch(each, one.text, re.DOTALL) for each in ELSEWHERE)]
    for example in joined(here):
        desk.run(example)
    record_property("documented commands run as they stand", len(here))
    record_property("documented commands run by the tests named in ELSEWHERE", len(shown) - len(here))


def test_every_command_of_a_model_card_works(desk, record_property):
    release = "make publish VARIANT=tiny-custom-voice TO='publish=hub publish.owner=me publish.private=false'"
    desk.run(Example(release, 0))
    folder = desk.folder / CELL / "release"
    shown = examples(folder / "README.md")
    # Programs that are not installed here, and a device and its layout.
    others = r"openarc .*|hf .*|.*(openarc_tts|optimum\.intel|openvino_genai|-npu-ov).*"
    here = [one for one in shown if not re.fullmatch(others, one.text, re.DOTALL)]
    assert len(here) >= 4
    for example in here:
        place = folder if "SHA256SUMS" in example.text or example.text.endswith(" .") else desk.folder
        desk.run(Example(f"cd {place} && {example.text}", example.line))
    record_property("documented commands run as they stand", len(here))


@pytest.mark.prove
def test_a_command_that_takes_long_works(desk):
    shown = [example for document in DOCUMENTS for example in examples(document)]
    long = [example for example in shown if re.fullmatch(LONG, example.text)]
    assert len(long) >= 4
    for example in long:
        desk.run(example)
    verified(desk.folder / CELL / "openarc" / "bundle")


def test_examples_are_extracted_from_a_document(tmp_path):
    text = "```console\n$ one   # why\noutput\n$ two \\\n  more\n```\n\n"
    text += "  ```python\n  three()\n  ```\n```yaml\n$ no\n```\n"
    (tmp_path / "page.md").write_text(text)
    assert examples(tmp_path / "page.md") == [
        Example("one", 2),
        Example("two \\\n  more", 4),
        Example("three()\n", 9, python=True),
    ]
