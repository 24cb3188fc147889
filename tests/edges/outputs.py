"""Files that a command writes, and what they must not hurt."""

import os
import resource
import shutil
from collections.abc import Callable

from qwen3_tts_ov import Speech, VoicePrompt
from qwen3_tts_ov.bundle import Bundle

from .case import Case, Desk
from .recordings import file

SAY = "say {custom-voice} 'Hi.' --max-frames 2 "


def beside(line: str, *kept: str) -> Callable[[Desk], str]:
    """Runs a command beside a recording, a text and a saved voice; the files that it is to keep must not change."""

    def do(desk: Desk) -> str:
        (desk.folder / "rec.wav").write_bytes(file())
        (desk.folder / "text.wav").write_bytes(b"Hello.")
        (desk.folder / "folder.wav").mkdir()
        (desk.folder / "link.wav").symlink_to("rec.wav")
        os.link(desk.folder / "rec.wav", desk.folder / "again.wav")
        os.mkfifo(desk.folder / "pipe.wav")
        before = {name: (desk.folder / name).read_bytes() for name in ("rec.wav", "text.wav")}
        names = set(os.listdir(desk.folder))
        came = desk.command(line)
        assert {name: (desk.folder / name).read_bytes() for name in before} == before
        assert not came.startswith("error") or set(os.listdir(desk.folder)) == names
        return came

    return do


def in_bundle(line: str) -> Callable[[Desk], str]:
    """Runs a command in the folder of a bundle, which must still be as its manifest says."""

    def do(desk: Desk) -> str:
        inside = desk.folder / "bundle"
        shutil.copytree(desk.bundle("custom-voice"), inside)
        os.chdir(inside)
        came = desk.command(line)
        Bundle.load(inside)
        return came

    return do


def on_full_disk(thing: Callable[[Desk], Speech | VoicePrompt], name: str) -> Callable[[Desk], str]:
    """Saves speech or a voice where only 256 bytes fit, over a file that must survive."""

    def do(desk: Desk) -> str:
        made = thing(desk)
        (desk.folder / name).write_bytes(b"old")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (256, before[1]))
        try:
            made.save(name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert [path.read_bytes() for path in desk.folder.iterdir()] == [b"old"]
        return "saved"

    return do


def speech(desk: Desk) -> Speech:
    return desk.synthesizer("custom-voice").speak("Hi.", max_frames=4, seed=1)


def prompt(desk: Desk) -> VoicePrompt:
    rec = desk.folder / "rec.wav"
    rec.write_bytes(file())
    made = desk.synthesizer("base").voice_prompt(rec, "What is said here, and it is said at length.")
    rec.unlink()
    return made


def saved(thing: Callable[[Desk], Speech | VoicePrompt], path: str) -> Callable[[Desk], str]:
    """Saves speech or a voice."""

    def do(desk: Desk) -> str:
        thing(desk).save(path.format(**desk.names))
        return "saved"

    return do


CASES = [
    Case("voice: -o onto the recording", beside("voice {base} rec.wav -o rec.wav"), "cannot write .wav"),
    Case("say: -o onto the recording", beside("say {base} Hi. --voice rec.wav -o rec.wav"), "would overwrite rec.wav"),
    Case(
        "say: -o onto it by another path",
        beside("say {base} Hi. --voice rec.wav -o folder.wav/../rec.wav"),
        "would overwrite",
    ),
    Case("say: -o onto it by a link", beside("say {base} Hi. --voice rec.wav -o link.wav"), "would overwrite rec.wav"),
    Case("say: -o onto it by a hard link", beside("say {base} Hi. --voice rec.wav -o again.wav"), "would overwrite"),
    Case(
        "say: -o onto the text file", beside("say {custom-voice} -f text.wav -o text.wav"), "would overwrite text.wav"
    ),
    Case("say: -o into the bundle", in_bundle("say . Hi. -o samples.wav"), "it would lie in the bundle"),
    Case("say: without -o, inside the bundle", in_bundle("say . Hello"), "it would lie in the bundle"),
    Case("say: -o beside the bundle", in_bundle("say . Hi. --max-frames 2 -o ../speech.wav"), "speech"),
    Case("say: -o into another bundle", beside(SAY + "-o {base}/speech.wav"), "it would lie in the bundle base"),
    Case("say: -o to a folder", beside(SAY + "-o folder.wav"), "it is a folder; give a file name"),
    Case("say: -o to a pipe", beside(SAY + "-o pipe.wav"), "it is a pipe or a device"),
    Case("say: -o to no folder", beside(SAY + "-o none/speech.wav"), "there is no folder none"),
    Case("say: -o without ending", beside(SAY + "-o speech"), "a file without ending"),
    Case("say: -o speech.mp3", beside(SAY + "-o speech.mp3"), "cannot write .mp3; the endings are"),
    Case("say: -o /dev/null", beside(SAY + "-o /dev/null"), "a file without ending"),
    Case("say: -o with an ending in capitals", beside(SAY + "-o SPEECH.WAV"), "speech"),
    Case("say: -o over earlier speech", beside(f"{SAY} -o old.wav"), "speech"),
    Case("voice: -o without ending", beside("voice {base} rec.wav -o me"), "the ending is .safetensors"),
    Case("voice: -o me.pt", beside("voice {base} rec.wav -o me.pt"), "the ending is .safetensors"),
    Case("voice: -o into the bundle", beside("voice {base} rec.wav -o {base}/me.safetensors"), "lie in the bundle"),
    Case("voice: -o me.safetensors", beside("voice {base} rec.wav -o me.safetensors"), "use it with `say --voice"),
    Case("Speech.save into a bundle", saved(speech, "{base}/a.wav"), "it would lie in the bundle base"),
    Case("Speech.save to a full disk, WAV", on_full_disk(speech, "speech.wav"), "cannot write it"),
    Case("Speech.save to a full disk, FLAC", on_full_disk(speech, "speech.flac"), "cannot write it"),
    Case("VoicePrompt.save without ending", saved(prompt, "me"), "the ending is .safetensors"),
    Case("VoicePrompt.save to a full disk", on_full_disk(prompt, "me.safetensors"), "cannot write it"),
]
