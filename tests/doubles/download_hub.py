"""A read-only Hub on loopback: repositories as folders, with the failures that a download meets."""

import hashlib
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlparse


@dataclass
class Hub:
    """What the double serves, what it breaks, and what it was asked."""

    url: str = ""
    repos: dict[str, tuple[str, Path]] = field(default_factory=dict)  # name: (commit, folder)
    branches: dict[str, str] = field(default_factory=lambda: {"main": ""})
    deny: dict[str, int] = field(default_factory=dict)  # name: status of every answer
    drop: dict[str, int] = field(default_factory=dict)  # path: bytes after which the connection breaks, once
    stall: dict[str, int] = field(default_factory=dict)  # path: bytes after which nothing more comes, once
    corrupt: set[str] = field(default_factory=set)  # paths whose content differs from the announced hash
    extra: list[str] = field(default_factory=list)  # names that the listing has on top
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range

    def ranges(self, path: str) -> list[str]:
        """The Range headers with which a file was asked for, in order."""
        wanted = re.compile(rf".*/resolve/[0-9a-f]+/{re.escape(path)}")
        return [ranged for method, asked, ranged in self.requests if method == "GET" and wanted.fullmatch(asked)]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serves the double while the block runs."""
    handler = type("Handler", (Handler,), {"hub": hub})
    server = Server(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Server(ThreadingHTTPServer):
    """Says nothing about connections that a test breaks."""

    def handle_error(self, *_: object) -> None: ...


class Handler(BaseHTTPRequestHandler):
    """Model info with file metadata, and files with ranges."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range") or ""))
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)", path)
        name = (info or file)[1] if info or file else ""
        if name in self.hub.deny:
            self.fail(self.hub.deny[name], "GatedRepo" if self.hub.deny[name] == 403 else "")
        elif name not in self.hub.repos:
            self.fail(404, "RepoNotFound")
        elif info:
            self.info(info[2], *self.hub.repos[name])
        elif file:
            self.file(self.hub.repos[name][1], file[3])

    do_HEAD = do_GET

    def fail(self, status: int, code: str) -> None:
        self.answer(status, b'{"error": "no"}', {"X-Error-Code": code} if code else {})

    def info(self, revision: str, commit: str, folder: Path) -> None:
        if revision not in (*self.hub.branches, commit):
            return self.fail(404, "RevisionNotFound")
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        siblings = [entry(path, path.relative_to(folder).as_posix()) for path in paths]
        siblings += [{"rfilename": name, "size": 1, "blobId": "0" * 40} for name in self.hub.extra]
        body = {"id": "x/y", "_id": "0", "sha": commit, "private": False, "tags": [], "downloads": 0, "likes": 0}
        return self.answer(200, json.dumps({**body, "siblings": siblings}).encode(), {})

    def file(self, folder: Path, name: str) -> None:
        if not (folder / name).is_file():
            return self.fail(404, "EntryNotFound")
        content = (folder / name).read_bytes()
        if name in self.hub.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        ranged = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(ranged[1]) if ranged else 0
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if ranged else {}
        return self.answer(206 if ranged else 200, content[start:], headers, name)

    def answer(self, status: int, body: bytes, headers: dict[str, str], name: str = "") -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.hub.drop.pop(name, None)
        if limit is not None:
            self.wfile.write(body[:limit])
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        limit = self.hub.stall.pop(name, None)
        with suppress(ConnectionError):
            if limit is not None:
                self.wfile.write(body[:limit])
                time.sleep(60)
                return
            self.wfile.write(body)


def entry(path: Path, name: str) -> dict[str, Any]:
    """A file as the Hub lists it; as on the Hub, safetensors lie in large-file storage."""
    content = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    listed: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
    if name.endswith(".safetensors"):
        digest = hashlib.sha256(content).hexdigest()
        listed |= {"blobId": "f" * 40, "lfs": {"sha256": digest, "size": len(content), "pointerSize": 134}}
    return listed
