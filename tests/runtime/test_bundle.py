"""Bundle.load: nothing in a folder or on the Hub is trusted before it is checked."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qwen3_tts_ov import Bundle, BundleError
from tests.doubles.bundle import LARGE, make_bundle, sign, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest and recomputes its bundle id, as an attacker would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    write_manifest(folder, sign(manifest))


def test_a_good_bundle_loads_from_a_path_and_from_a_string(folder):
    assert Bundle.load(folder).speakers == ["ryan"]
    assert Bundle.load(str(folder)).frames_per_second == 12.5


def test_files_that_the_manifest_does_not_list_are_named_and_never_stop_a_bundle(folder):
    for name in (
        "README.md",
        "model.sig",
        "Thumbs.db",
        "speech.wav",
        ".gitattributes",
        ".cache/state",
        "samples/a.wav",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
    (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(b'').hexdigest()}  README.md\n")
    assert Bundle.load(folder).foreign() == ["Thumbs.db", "samples/a.wav", "speech.wav"]


def test_an_older_openvino_than_the_one_that_built_it_is_a_warning(folder, monkeypatch, caplog):
    bundle = Bundle.load(folder)
    bundle.manifest["provenance"] = {"versions": {"openvino": "2099.1.0"}}
    bundle._warn_of_older_openvino()
    assert "is older than 2099.1.0, with which the bundle was built: speaking may be slower" in caplog.text


def test_every_fault_of_the_files_is_named_at_once(folder):
    (folder / "talker.xml").unlink()
    (folder / "config.json").write_bytes(b"{} ")
    with pytest.raises(BundleError, match=r"config.json has changed \(3 bytes, not 2\).*talker.xml is missing"):
        Bundle.load(folder)


def test_a_change_that_keeps_the_size_is_found_only_by_the_hash(folder):
    (folder / "talker.bin").write_bytes(LARGE[::-1])
    with pytest.raises(BundleError, match=r"talker.bin has changed \(its sha256 differs\)"):
        Bundle.load(folder)
    Bundle.load(folder, verify=False)


MANIFEST_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no format": (lambda m: m.pop("format"), "no format number"),
    "format from the future": (lambda m: m.update(format=2), "format 2 is not one that this version reads"),
    "no components": (lambda m: m.pop("components"), "components is missing"),
    "speakers as text": (lambda m: m.update(speakers="ryan"), "speakers is missing or of the wrong type"),
    "another layout": (lambda m: m.update(layout="openarc"), "'openarc', made for another runtime"),
    "unknown default voice": (lambda m: m.update(default_voice="alloy"), "'alloy' is not one of the speakers"),
    "unknown kind": (lambda m: m.update(kind="singing"), "kind 'singing' is not one of custom_voice"),
    "no rate": (lambda m: m.update(sample_rate=0), "must be positive"),
    "version in words": (lambda m: m.update(minimum_openvino="latest"), "'latest' is not a version"),
    "newer OpenVINO": (lambda m: m.update(minimum_openvino="2099.1"), "needs OpenVINO 2099.1 or later, this is"),
    "a component less": (lambda m: m["components"].pop("talker"), "component talker is missing"),
    "a kind with more components": (lambda m: m.update(kind="base"), "component residual_code_embedding is missing"),
    "an unlisted graph": (lambda m: m["components"]["talker"].update(xml="other.xml"), "'other.xml' is not among"),
    "a file without hash": (lambda m: m["files"].update({"talker.xml": {"size": 3}}), "no size and sha256"),
    "no tokenizer": (lambda m: m["files"].pop("tokenizer.json"), "tokenizer.json is not among the files"),
}


@pytest.mark.parametrize("case", MANIFEST_FAULTS)
def test_a_manifest_that_does_not_fit_is_refused_with_the_reason(folder, case):
    change, message = MANIFEST_FAULTS[case]
    edit(folder, change)
    with pytest.raises(BundleError, match=message):
        Bundle.load(folder)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../outside",
        "a/../../outside",
        "..",
        "C:\\outside",
        "a\\b",
        "~/x",
        ".hidden",
        "a//b",
        "*.bin",
        "",
        "a\nb",
    ],
)
def test_no_path_may_leave_the_bundle(folder, path):
    (folder.parent / "outside").write_bytes(b"")
    entry = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    edit(folder, lambda manifest: manifest["files"].update({path: entry}))
    with pytest.raises(BundleError, match="is not a plain relative path"):
        Bundle.load(folder)


def test_a_link_out_of_the_bundle_is_refused_even_to_the_right_bytes(folder):
    (folder / "talker.bin").rename(folder.parent / "talker.bin")
    (folder / "talker.bin").symlink_to(folder.parent / "talker.bin")
    with pytest.raises(BundleError, match=r"talker.bin is a link that leaves the bundle"):
        Bundle.load(folder)


def test_a_linked_folder_inside_the_bundle_is_refused(folder):
    (folder / "speech_tokenizer").rename(folder.parent / "elsewhere")
    (folder / "speech_tokenizer").symlink_to(folder.parent / "elsewhere")
    with pytest.raises(BundleError, match=r"speech_tokenizer/config.json is a link"):
        Bundle.load(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "\x00"])
def test_a_file_that_is_not_a_manifest_is_refused(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(BundleError, match=r"manifest.json"):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no-such-folder", r"no such folder, and it is not a Hub id"),
        ("mini-voic/int8/bundle", r"no such folder \(did you mean 'mini-voice'\?\), and it is not a Hub id"),
        ("https://huggingface.co/a/b", r"not a Hub id"),
        ("a/b/c", r"not a Hub id"),
        ("", r"not a Hub id"),
    ],
)
def test_a_source_that_is_neither_folder_nor_hub_id_is_refused(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini-voice").mkdir()
    with pytest.raises(BundleError, match=message):
        Bundle.load(source)


def test_a_folder_without_manifest_and_a_folder_with_revision_are_refused(folder, tmp_path):
    with pytest.raises(BundleError, match=r"it has no manifest.json"):
        Bundle.load(tmp_path)
    with pytest.raises(BundleError, match="a folder has no revision"):
        Bundle.load(folder, revision="main")


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub that a download needs: one public repository, with range requests."""

    protocol_version = "HTTP/1.1"
    root: Path
    commit = "a" * 40
    asked: list[tuple[str, str | None]]  # path and Range of every GET
    stall_at: int | None = None  # bytes of a large file after which this server stops responding
    stalled: threading.Event

    def do_HEAD(self) -> None:
        self.respond(body=False)

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Range")))
        self.respond(body=True)

    def respond(self, body: bool) -> None:
        if self.path.startswith(f"/api/models/acme/voice/tree/{self.commit}"):
            files = [path for path in self.root.rglob("*") if path.is_file()]
            tree = [
                {
                    "type": "file",
                    "path": path.relative_to(self.root).as_posix(),
                    "size": path.stat().st_size,
                    "oid": "0",
                }
                for path in files
            ]
            return self.answer(json.dumps(tree).encode(), body)
        for revision in ("main", "v1", self.commit):
            prefix = f"/acme/voice/resolve/{revision}/"
            if self.path.startswith(prefix):
                return self.file(self.root / self.path.removeprefix(prefix), body)
        missing = "RevisionNotFound" if self.path.startswith("/acme/voice/") else "RepoNotFound"
        return self.answer(b"", body, 404, {"X-Error-Code": missing})

    def file(self, path: Path, body: bool) -> None:
        if not path.is_file():
            return self.answer(b"", body, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.commit})
        data = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": self.commit,
            "Accept-Ranges": "bytes",
        }
        wanted = self.headers.get("Range")
        if wanted is None:
            return self.answer(data, body, 200, headers)
        start = int(wanted.removeprefix("bytes=").partition("-")[0])
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self.answer(data[start:], body, 206, headers)

    def answer(self, data: bytes, body: bool, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body and type(self).stall_at is not None and len(data) > type(self).stall_at:
            self.wfile.write(data[: type(self).stall_at])
            self.wfile.flush()
            self.stalled.set()
            self.rfile.read(1)  # until the client is gone
        elif body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(folder: Path) -> Iterator[type[Hub]]:
    """A Hub on loopback that holds `folder` as acme/voice."""
    handler = type("OneHub", (Hub,), {"root": folder, "asked": [], "stalled": threading.Event()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler
    server.shutdown()
    server.server_close()


def pull(hub: type[Hub], home: Path, *arguments: str, offline: bool = False) -> subprocess.Popen[str]:
    """`qwen3-tts-ov pull` in a process of its own, because the client reads the Hub's address when it is imported."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-c", "from qwen3_tts_ov.app.cli import app; app()", "pull", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_hub_bundle_is_fetched_checked_and_then_found_without_the_network(hub, tmp_path, folder):
    (folder / "unlisted.py").write_text("not for you")
    done = pull(hub, tmp_path / "home", "acme/voice", "--revision", "v1")
    out, err = done.communicate(timeout=60)
    assert (done.returncode, err) == (0, "")
    assert Bundle.load(out.strip()).speakers == ["ryan"], "a snapshot's own path is a bundle too"
    assert not any("unlisted.py" in path for path, _ in hub.asked), "only what the manifest names is fetched"

    again = pull(hub, tmp_path / "home", "acme/voice", "--revision", "v1", offline=True)
    assert again.communicate(timeout=60) == (out, "")


def test_a_fetch_that_was_killed_is_completed_by_the_next(hub, tmp_path):
    hub.stall_at = 500_000
    first = pull(hub, tmp_path / "home", "acme/voice")
    assert hub.stalled.wait(60)
    first.kill()
    first.communicate()
    hub.stall_at, taken = None, len(hub.asked)
    second = pull(hub, tmp_path / "home", "acme/voice")
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    fetched = [path.rpartition("/")[2] for path, _ in hub.asked[taken:]]
    assert "talker.bin" in fetched
    assert Bundle.load(out.strip()).path("talker.bin").read_bytes() == LARGE


def test_a_file_that_was_changed_on_the_hub_is_refused(hub, tmp_path, folder):
    (folder / "talker.bin").write_bytes(LARGE[::-1])
    done = pull(hub, tmp_path / "home", "acme/voice")
    _, err = done.communicate(timeout=60)
    assert done.returncode == 1
    assert "talker.bin has changed" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["acme/nothing"], "error: acme/nothing: the Hub has no such repository, or it is private"),
        (["acme/voice", "--revision", "v9"], "error: acme/voice at v9: the repository has no such revision"),
        (["acme/bad..name"], "error: acme/bad..name: "),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(hub, tmp_path, arguments, message):
    done = pull(hub, tmp_path / "home", *arguments)
    out, err = done.communicate(timeout=60)
    assert (done.returncode, out) == (1, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_a_repository_without_manifest_is_distinguished_from_a_missing_one(hub, tmp_path, folder):
    (folder / "manifest.json").unlink()
    done = pull(hub, tmp_path / "home", "acme/voice")
    assert "acme/voice: the repository has no manifest.json, so it is not a bundle" in done.communicate(timeout=60)[1]


def test_without_network_and_cache_the_error_says_so(hub, tmp_path):
    done = pull(hub, tmp_path / "home", "acme/voice", offline=True)
    assert "the Hub cannot be reached and the bundle is not in the local cache" in done.communicate(timeout=60)[1]
