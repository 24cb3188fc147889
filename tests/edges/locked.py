"""Users without a home, folders that cannot be written, ports that are taken, caches that others write."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.stage import ROOT

from .case import SPEECH, Case, Desk

SPEAK = """
from qwen3_tts_ov import Bundle, Synthesizer
speech = Synthesizer(Bundle.load({bundle!r}, verify=False)).speak("Hi.", max_frames=2, seed=1)
print("speech", len(speech.codes))
"""
# As in a container that runs under a number without an entry in /etc/passwd.
HOMELESS = "import pwd\ndef unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\n"


def python(desk: Desk, script: str, **environment: str) -> str:
    """What a script prints in a process of its own: the last line of stdout, and of stderr."""
    search = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script.replace("{bundle!r}", repr(desk.names["custom-voice"]))],
        env=search | environment, cwd=desk.folder, capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return "; ".join(text.strip().splitlines()[-1] for text in (done.stdout, done.stderr) if text.strip())


def without_home(desk: Desk) -> str:
    told = python(desk, HOMELESS + SPEAK)
    return f"{told}; left behind: {', '.join(os.listdir(desk.folder)) or 'nothing'}"


def at_once(desk: Desk) -> str:
    """Processes that compile into one empty cache at the same time."""
    with ThreadPoolExecutor() as pool:
        told = list(pool.map(lambda _: python(desk, SPEAK, XDG_CACHE_HOME=str(desk.folder)), range(2)))
    return ", ".join(dict.fromkeys(told))


def cached_in(place: Callable[[Desk], Path]) -> Callable[[Desk], str]:
    def do(desk: Desk) -> str:
        os.environ["XDG_CACHE_HOME"] = str(place(desk))  # restored by the desk
        return desk.command("say {custom-voice} Hi. --max-frames 2 -o out.wav")

    return do


def a_file(desk: Desk) -> Path:
    (desk.folder / "file").write_text("")
    return desk.folder / "file"


def broken_blobs(desk: Desk) -> Path:
    """A cache whose files were cut, as by a full disk or a process that was killed."""
    desk.command("say {custom-voice} Hi. --max-frames 2 -o first.wav")
    user = Path(os.environ["XDG_CACHE_HOME"])
    model = desk.synthesizer("custom-voice").model
    blobs = [path for path in user.rglob("*.blob") if model.cache_key in path.parts]
    assert blobs
    for blob in blobs:
        cut = desk.folder / blob.relative_to(user)
        cut.parent.mkdir(parents=True, exist_ok=True)
        cut.write_bytes(blob.read_bytes()[: blob.stat().st_size // 2])
    return desk.folder


def occupied(desk: Desk) -> str:
    """`serve` at a port that another program holds."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        return desk.command(f"serve {{custom-voice}} --port {port}").replace(port, "8000")


NOWHERE = Path("/proc/nowhere")
CASES = [
    Case("a user without a home", without_home, "speech 2; the user's cache: cannot keep a model cache there"),
    Case("a home that cannot be written", lambda desk: python(desk, SPEAK, HOME="/proc"), "cannot keep a model cache"),
    Case("a cache folder that cannot be made", cached_in(lambda desk: NOWHERE), "every start will be slow"),
    Case("a file in the cache folder's place", cached_in(a_file), SPEECH),
    Case("a cache of cut files", cached_in(broken_blobs), SPEECH),
    Case("two processes fill one cache", at_once, "speech 2"),
    Case("a port in use", occupied, "cannot listen at 127.0.0.1, port 8000: [Errno 98] Address already in use"),
    Case("a host that is none", "serve {custom-voice} --host no.such.invalid", "cannot listen at no.such.invalid"),
    Case("an address of another machine", "serve {custom-voice} --host 192.0.2.1", "cannot listen at 192.0.2.1"),
    Case("a port beyond 65535", "serve {custom-voice} --port 70000", "Invalid value for '--port'"),
    Case("no folder of voices", "serve {base} --voices nowhere", "it has no voice prompt"),
]
