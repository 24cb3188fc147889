"""Recordings to clone, from every source and with every fault."""

import base64
import datetime
import io
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from .case import Case, Desk

RATE = 24_000
CLONED = "say {base} 'Hi.' --max-frames 2 -o out.wav --voice "


def voiced(seconds: float = 1.5, rate: int = RATE) -> np.ndarray:
    """A tone that swells like syllables, float32 [samples]."""
    clock = np.arange(round(rate * seconds)) / rate
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * 4 * clock)
    return (0.3 * swell * np.sin(2 * np.pi * 180 * clock)).astype(np.float32)


def stereo(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.stack([left, right], axis=1)


def file(samples: np.ndarray | None = None, **how: Any) -> bytes:
    """A recording as a file's bytes, WAV if nothing else is said."""
    buffer = io.BytesIO()
    soundfile.write(
        buffer, voiced() if samples is None else samples, RATE, **{"format": "WAV", "subtype": "FLOAT"} | how
    )
    return buffer.getvalue()


def media(container: str, codec: str, rate: int = 48_000, seconds: float = 1.5) -> bytes:
    """A recording as a phone (m4a) or a browser (webm) makes it."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as target:
        stream = target.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(voiced(seconds, rate)[None], format="fltp", layout="mono")
        frame.rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            target.mux(packet)
    return buffer.getvalue()


def silent_video() -> bytes:
    """An mp4 without sound."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as target:
        stream = target.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 16
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            target.mux(packet)
    return buffer.getvalue()


def cloned(make: Callable[[], Any]) -> Callable[[Desk], str]:
    """Speaks with the voice of a source in Python."""

    def do(desk: Desk) -> str:
        speech = desk.synthesizer("base").speak("Hi.", voice=make(), max_frames=2, seed=1)
        return "speech" if speech.samples else "nothing"

    return do


def named(name: str, content: bytes | Callable[[], bytes]) -> Callable[[Desk], str]:
    """Clones a file with this name and content."""

    def do(desk: Desk) -> str:
        (desk.folder / name).write_bytes(content() if callable(content) else content)
        return cloned(lambda: name)(desk)

    return do


def from_pipe(desk: Desk) -> str:
    """Clones a named pipe, as a shell makes one for <(cat rec.wav)."""
    os.mkfifo(desk.folder / "pipe")
    (desk.folder / "rec.wav").write_bytes(file())
    with subprocess.Popen(["sh", "-c", "cat rec.wav > pipe"], cwd=desk.folder):
        return desk.command(f"{CLONED} pipe")


def without_pyav(desk: Desk) -> str:
    """Clones an m4a where PyAV is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "av", None)
        return named("rec.m4a", partial(media, "mp4", "aac"))(desk)


class _Recordings(BaseHTTPRequestHandler):
    """A web server with one recording, and a way out of https."""

    def do_GET(self) -> None:
        self.send_response({"/rec.wav": 200, "/away": 302}.get(self.path, 404))
        if self.path == "/away":
            self.send_header("Location", f"http://localhost:{self.server.server_port}/rec.wav")
        self.end_headers()
        if self.path == "/rec.wav":
            self.wfile.write(file())

    def log_message(self, *_: object) -> None:
        pass


def fetched(path: str, trusted: bool = True) -> Callable[[Desk], str]:
    """Clones https://localhost:<port>/<path> with --allow-url."""

    def do(desk: Desk) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Recordings)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(_certificate(desk.folder))
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"https://localhost:{server.server_port}"
        try:
            with pytest.MonkeyPatch.context() as patch:
                if trusted:
                    patch.setenv("SSL_CERT_FILE", str(desk.folder / "server.pem"))
                return desk.command(f"{CLONED} {url}/{path} --allow-url").replace(url, "https://localhost")
        finally:
            server.shutdown()
            server.server_close()

    return do


def _certificate(folder: Path) -> Path:
    """A key and a certificate for localhost, signed by itself, in one file."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    day, now = datetime.timedelta(days=1), datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(names, critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return folder / "server.pem"


def data_url(content: bytes, head: str = "data:audio/wav;base64,") -> str:
    return head + base64.b64encode(content).decode()


def drained(content: bytes) -> io.BytesIO:
    """A file object that has been read to its end."""
    buffer = io.BytesIO(content)
    buffer.read()
    return buffer


def unseekable(content: bytes) -> Any:
    """A file object as a socket gives it."""
    reader, writer = os.pipe()
    threading.Thread(target=lambda: (os.write(writer, content), os.close(writer)), daemon=True).start()
    return os.fdopen(reader, "rb")


def click() -> np.ndarray:
    samples = np.zeros(RATE, np.float32)
    samples[RATE // 2] = 1
    return samples


SOURCES = [
    Case("a path", named("rec.wav", file()), "speech"),
    Case("a path with spaces and other scripts", named("mein Ton 录音.wav", file()), "speech"),
    Case("a file without ending", named("rec", file()), "speech"),
    Case("a FLAC named .wav", named("rec.wav", file(format="FLAC", subtype="PCM_16")), "speech"),
    Case("a named pipe: --voice <(cat rec.wav)", from_pipe, "speech"),
    Case("stdin: --voice -", lambda desk: desk.command(f"{CLONED} -", stdin=file()), "speech"),
    Case("text and recording both from stdin", "say {base} - --voice -", "stdin is either the text or the recording"),
    Case("an empty stdin", lambda desk: desk.command(f"{CLONED} -"), "cannot read it as audio"),
    Case("bytes", cloned(file), "speech"),
    Case("a bytearray", cloned(lambda: bytearray(file())), "speech"),
    Case("an open file", cloned(lambda: io.BytesIO(file())), "speech"),
    Case("a file object that cannot seek", cloned(lambda: unseekable(file())), "speech"),
    Case("an open file, read to its end", cloned(lambda: drained(file())), "it is empty, or has been read to its end"),
    Case("a file opened as text", cloned(lambda: io.StringIO("RIFF")), "open it in binary mode"),
    Case("a number", cloned(lambda: 5), "must be a path, a file, bytes"),
    Case("a data URL", cloned(lambda: data_url(file())), "speech"),
    Case("a data URL on the command line", lambda desk: desk.command(CLONED + data_url(file())), "speech"),
    Case("a data URL that is not base64", CLONED + "data:audio/wav;base64,@@@@", "it is not base64"),
    Case("a data URL without content", CLONED + "data:audio/wav;base64,", "it holds nothing"),
    Case("a data URL of an image", cloned(lambda: data_url(b"\x89PNG" + bytes(99))), "cannot read it as audio"),
    Case("a https URL without --allow-url", CLONED + "https://localhost/rec.wav", "a URL is not fetched unasked"),
    Case("a https URL with --allow-url", fetched("rec.wav"), "speech"),
    Case("a https URL that leads to nothing", fetched("none.wav"), "the server answers 404"),
    Case("a https URL with an untrusted certificate", fetched("rec.wav", trusted=False), "it cannot be fetched"),
    Case("a https URL that leads to http", fetched("away"), "it cannot be fetched"),
    Case("a http URL with --allow-url", CLONED + "http://localhost/rec.wav --allow-url", "only https is fetched"),
    Case("a https URL where nothing listens", CLONED + "https://127.0.0.1:9/a.wav --allow-url", "it cannot be fetched"),
    Case("a malformed URL", CLONED + "https://[::1/a.wav --allow-url", "it cannot be fetched"),
    Case("a missing file", CLONED + "none.wav", "none.wav: there is no such file"),
    Case("a folder", CLONED + ".", "it is a folder, not a recording"),
    Case("a name of 5000 characters", CLONED + "a" * 5000, "there is no such file"),
    Case("/dev/zero", CLONED + "/dev/zero", "it is over 100 MB"),
    Case("/dev/null", CLONED + "/dev/null", "it is empty"),
    Case("m4a, as a phone records", named("rec.m4a", partial(media, "mp4", "aac")), "speech"),
    Case("m4a as bytes", cloned(partial(media, "mp4", "aac")), "speech"),
    Case("webm, as a browser records", named("rec.webm", partial(media, "webm", "libopus")), "speech"),
    Case("aac without a container", named("rec.aac", partial(media, "adts", "aac")), "speech"),
    Case("m4a without PyAV", without_pyav, "pip install 'qwen3-tts-ov[media]'"),
    Case("a video without sound", named("rec.mp4", silent_video), "it has no sound"),
    Case("half of an m4a", named("rec.m4a", lambda: media("mp4", "aac")[:4000]), "error: rec.m4a: "),
    Case("half of a webm", named("rec.webm", lambda: media("webm", "libopus")[:6000]), "speech"),
    Case("an HLS playlist", named("rec.m4a", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"), "cannot read it as audio"),
    Case("a PNG named .wav", named("rec.wav", b"\x89PNG\r\n\x1a\n" + bytes(100)), "cannot read it as audio"),
    Case("an empty file", named("rec.wav", b""), "cannot read it as audio"),
    Case("half of a WAV", named("rec.wav", file()[: len(file()) * 2 // 3]), "speech"),
]

SAMPLES = [
    Case("channels that cancel each other out", cloned(lambda: file(stereo(voiced(), -voiced()))), "channel 1 alone"),
    Case("channels that nearly cancel", cloned(lambda: file(stereo(0.9 * voiced(), -voiced()))), "channel 2 alone"),
    Case("one-sided stereo", cloned(lambda: file(stereo(0 * voiced(), voiced()))), "channel 1 is silent and left out"),
    Case("ordinary stereo", cloned(lambda: file(stereo(voiced(), 0.5 * voiced()))), "speech"),
    Case(
        "six channels, one with speech",
        cloned(lambda: file(np.eye(6, dtype=np.float32)[2] * voiced()[:, None])),
        "left out",
    ),
    Case("a constant offset", cloned(lambda: file(voiced() + 0.3)), "a constant offset of 0.3 was taken out"),
    Case("an offset and nothing else", cloned(lambda: file(0 * voiced() + 0.3)), "it is silent"),
    Case("a click and nothing else", cloned(lambda: file(click())), "it is silent but for 0.02 s"),
    Case("silence", cloned(lambda: file(0 * voiced())), "it is silent"),
    Case("floats scaled to 32767", cloned(lambda: (voiced() * 32767 / 0.3, RATE)), "divide them by their full scale"),
    Case("a float WAV scaled to 32767", cloned(lambda: file(voiced() * 32767)), "and full scale is 1"),
    Case("a float WAV a little over full scale", cloned(lambda: file(voiced() * 4)), "speech"),
    Case(
        "a list of whole numbers", cloned(lambda: ((voiced() * 32767).astype(int).tolist(), RATE)), "give them as int16"
    ),
    Case("int16", cloned(lambda: ((voiced() * 32767).astype(np.int16), RATE)), "speech"),
    Case(
        "24 bits in int32, not shifted", cloned(lambda: ((voiced() * 2**22).astype(np.int32), RATE)), "next to nothing"
    ),
    Case("a ragged list", cloned(lambda: ([[1.0], [1.0, 2.0]], RATE)), "must be an array of samples"),
    Case("channels first", cloned(lambda: (voiced()[None], RATE)), "neither [samples] nor [samples, channels]"),
    Case("a rate in kHz", cloned(lambda: (voiced(), 24)), "24 Hz is not plausible"),
    Case("a NaN", cloned(lambda: (np.append(voiced(), np.nan), RATE)), "NaN or infinite"),
    Case("too short", cloned(lambda: file(voiced(0.3))), "it is too short, 0.30 s"),
    Case("too long", cloned(lambda: file(voiced(61))), "it is too long, 61 s"),
    Case("an m4a that is too long", cloned(lambda: media("mp4", "aac", 16_000, 70)), "it is too long"),
]

CASES = SOURCES + SAMPLES
