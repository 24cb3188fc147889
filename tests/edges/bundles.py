"""Bundles: files that are not theirs, damage, and manifests that are not what they seem."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from qwen3_tts_ov import Bundle
from tests.doubles.bundle import LARGE, make_bundle, sign, write_manifest

from .case import SPEECH, Case, Desk


def beside(*names: str) -> Callable[[Desk], str]:
    """Speaks from a bundle with foreign files in its folder, then verifies it."""

    def do(desk: Desk) -> str:
        folder = linked(desk)
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"foreign")
        spoken = desk.command("say {copy} Hi. --max-frames 2 -o ../out.wav")
        return f"{spoken}; {desk.command('verify {copy}')}"

    return do


def linked(desk: Desk) -> Path:
    """A copy of a bundle, its files hard links: replace them, do not write into them."""
    folder = desk.folder / "copy"
    shutil.copytree(desk.bundle("custom-voice"), folder, copy_function=os.link)
    desk.names["copy"] = str(folder)
    os.chdir(folder)
    return folder


def a_file(desk: Desk) -> str:
    (desk.folder / "notes.txt").write_text("")
    return str(Bundle.load(desk.folder / "notes.txt"))


def damaged(hurt: Callable[[Path], object], load: Callable[[Path], object] = Bundle.load) -> Callable[[Desk], str]:
    """Loads a small bundle after `hurt` has been at its folder."""

    def do(desk: Desk) -> str:
        folder = make_bundle(desk.folder / "small")
        hurt(folder)
        load(folder)
        return "loads"

    return do


def edited(change: Callable[[dict], object]) -> Callable[[Desk], str]:
    """Loads a small bundle whose manifest was changed and signed again."""

    def hurt(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        write_manifest(folder, sign(manifest))

    return damaged(hurt, lambda folder: Bundle.load(folder).model)


def half_a_pair(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"variant": "tiny"', '"variant": "\\ud800"'))


def text(content: str) -> Callable[[Desk], str]:
    return damaged(lambda folder: (folder / "manifest.json").write_text(content))


CASES = [
    Case("speech.wav lies in the bundle", beside("speech.wav"), "never opened: speech.wav; move it away"),
    Case("Windows was there", beside("Thumbs.db", "desktop.ini"), "Thumbs.db, desktop.ini; move them away"),
    Case("macOS was there", beside(".DS_Store"), SPEECH),
    Case("a program lies in it", beside("run.py", "models/other.xml"), "models/other.xml, run.py; move them away"),
    Case("a card and a licence of one's own", beside("README.md", "LICENSE"), "LICENSE, README.md; move them away"),
    Case("an editor's backup", beside("manifest.json~"), "manifest.json~; move it away"),
    Case("a file is missing", damaged(lambda it: (it / "talker.bin").unlink()), "talker.bin is missing"),
    Case(
        "a file is cut", damaged(lambda it: (it / "talker.bin").write_bytes(b"")), "has changed (0 bytes, not 800000)"
    ),
    Case(
        "a file is changed at the same size",
        damaged(lambda it: (it / "talker.bin").write_bytes(LARGE[::-1])),
        "its sha256 differs",
    ),
    Case(
        "a folder in a file's place",
        damaged(lambda it: ((it / "talker.bin").unlink(), (it / "talker.bin").mkdir())),
        "talker.bin is missing",
    ),
    Case(
        "a link to itself",
        damaged(lambda it: ((it / "talker.bin").unlink(), (it / "talker.bin").symlink_to("talker.bin"))),
        "talker.bin",
    ),
    Case(
        "a link out of the bundle",
        damaged(lambda it: ((it / "talker.bin").unlink(), (it / "talker.bin").symlink_to("/etc/hostname"))),
        "is a link that leaves the bundle",
    ),
    Case(
        "the manifest is a folder",
        damaged(lambda it: ((it / "manifest.json").unlink(), (it / "manifest.json").mkdir())),
        "it has no manifest.json",
    ),
    Case("the manifest is empty", text(""), "cannot be read as JSON"),
    Case("the manifest is a page of HTML", text("<html>Log in</html>"), "cannot be read as JSON"),
    Case("the manifest is nested 100 000 deep", text("[" * 100_000), "cannot be read as JSON"),
    Case("the manifest is a list", text("[]"), "not a bundle's manifest"),
    Case(
        "the manifest holds half a surrogate pair",
        damaged(half_a_pair),
        "not a bundle's manifest",
    ),
    Case(
        "a list as a component's file",
        edited(lambda m: m["components"]["talker"].update(xml=["a"])),
        "not a bundle's manifest",
    ),
    Case("a number among the voices", edited(lambda m: m.update(speakers=[7])), "speakers is not a list of names"),
    Case("an element type is missing", edited(lambda m: m.update(provenance=[])), "lacks what speaking needs"),
    Case(
        "config.json is of another kind", edited(lambda m: None), "not the configuration of a custom_voice checkpoint"
    ),
    Case("a bundle of the future", edited(lambda m: m.update(format=9)), "upgrade qwen3-tts-ov"),
    Case("an OpenVINO of the future", edited(lambda m: m.update(minimum_openvino="2099.1")), "needs OpenVINO 2099.1"),
    Case(
        "a path out of the bundle",
        edited(lambda m: m["files"].update({"../x": {"size": 0, "sha256": ""}})),
        "plain relative path",
    ),
    Case("a name of 5000 characters", lambda desk: str(Bundle.load("a" * 5000)), "there is no such folder"),
    Case("a zero byte in the name", lambda desk: str(Bundle.load("a\0b")), "there is no such folder"),
    Case("a data URL", lambda desk: str(Bundle.load("data:," + "x" * 9000)), "there is no such folder"),
    Case("a web address", lambda desk: str(Bundle.load("https://huggingface.co/acme/voice")), "not a Hub id"),
    Case("a file", a_file, "there is no such folder"),
    Case("an empty folder", lambda desk: str(Bundle.load(desk.folder)), "it has no manifest.json"),
    Case("a revision of a folder", "say {custom-voice} Hi. --revision v1", "a folder has no revision"),
]
