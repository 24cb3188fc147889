"""A Hub on loopback: repositories, branches, tags, commits, downloads with ranges, uploads by LFS or Xet, and failures.

It stores what the real one stores and refuses what it refuses: a wrong token, a stale parent, a commit of content that
was never uploaded. Every request is numbered, so a test can break any of them.
"""

import base64
import copy
import hashlib
import json
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants

TOKEN = "hf_only_for_tests"
LARGE = re.compile(r".*\.(bin|wav|safetensors)")  # files that .gitattributes sends to large-file storage


@dataclass
class Answer(Exception):
    """Status, JSON or bytes, and headers of an answer; raised to refuse a request."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


def refuse(status: int, code: str) -> Answer:
    wait = {"Retry-After": "7"} if status == 429 else {}
    return Answer(status, {"error": code}, {"X-Error-Code": code} | wait)


# The failure of a request. It is refused with a status or an answer; or the connection breaks, before the request is
# handled (drop), after it (lost) or during the answer (cut); or the server stops responding, before the request is
# handled (stall) or during the answer (hang).
Fault = str | int | Answer | None


@dataclass(frozen=True)
class File:
    """A file in a commit: the sha256 of its content, its size, git's id of the blob or pointer, and its storage."""

    sha256: str
    size: int
    blob: str
    large: bool
    xet: str | None = None


@dataclass
class Repository:
    """Commits as complete lists of files, and the names that point to them."""

    commits: dict[str, dict[str, File]]
    branches: dict[str, str]
    tags: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def resolve(self, revision: str) -> str | None:
        names = self.branches | self.tags
        return names.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Hub:
    """The double's contents, its faults, and the requests it received."""

    cas: Path | None = None  # with a folder, uploads go to Xet's storage there; without, through LFS
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    fault: Callable[[int, str], Fault] = lambda number, path: None
    before_commit: list[Callable[[], object]] = field(default_factory=list)  # each called once, by a commit
    stalled: threading.Event = field(default_factory=threading.Event)  # a client waits for an answer that never comes
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range
    lock: threading.RLock = field(default_factory=threading.RLock)

    def state(self) -> tuple[Any, Any]:
        return copy.deepcopy(self.repositories), dict(self.objects)

    def restore(self, state: tuple[Any, Any]) -> None:
        self.repositories, self.objects = copy.deepcopy(state[0]), dict(state[1])
        self.calm()

    def calm(self) -> None:
        """Removes all faults and resets the count of requests."""
        self.fault = lambda number, path: None
        self.before_commit.clear()
        self.requests.clear()
        self.stalled.clear()

    def put(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.objects[digest] = content
        return digest

    def small(self, content: bytes) -> File:
        return File(self.put(content), len(content), blob_id(content), large=False)

    def file(self, name: str, content: bytes) -> File:
        """A file in the storage that its name calls for."""
        file = self.small(content)
        if LARGE.fullmatch(name):
            return replace(file, blob=blob_id(pointer(file.sha256, file.size)), large=True)
        return file

    def mirror(self, repository: str, commit: str, folder: Path) -> None:
        """Adds a public repository with the files of a folder, with main at the commit."""
        paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        files = {name: self.file(name, path.read_bytes()) for name, path in paths.items()}
        self.repositories[repository] = Repository({commit: files}, {"main": commit})

    def ranges(self, path: str) -> list[str]:
        """The Range headers with which a file was requested, in order."""
        wanted = re.compile(rf".*/resolve/[0-9a-f]+/{re.escape(path)}")
        return [ranged for method, asked, ranged in self.requests if method == "GET" and wanted.fullmatch(asked)]

    def add(self, repository: str, name: str, content: bytes, branch: str = "main") -> None:
        """A commit by someone else."""
        with self.lock:
            repo = self.repositories[repository]
            self.commit(repo, branch, repo.commits[repo.branches[branch]] | {name: self.small(content)})

    def commit(self, repo: Repository, branch: str, files: dict[str, File]) -> str:
        oid = hashlib.sha1(f"{repo.branches.get(branch)} {len(repo.commits)} {sorted(files)}".encode()).hexdigest()
        repo.commits[oid] = files
        repo.branches[branch] = oid
        return oid

    def content(self, repository: str, revision: str, name: str) -> bytes:
        repo = self.repositories[repository]
        return self.objects[repo.commits[repo.resolve(revision) or ""][name].sha256]


def blob_id(content: bytes) -> str:
    """Git's id of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer(digest: str, size: int) -> bytes:
    """Git's pointer to a file in large-file storage."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {size}\n".encode()


def xet_hashes(cas: Path) -> dict[str, str]:
    """sha256 to Xet hash of the files in the shards of Xet's local storage.

    A shard has a header of 48 bytes, then records of 48 bytes: for each file its hash, flags and the number of its
    segments, the segments, as many verification records where flag 31 is set, and the sha256 where flag 30 is. A hash
    is four little-endian numbers of 64 bits. A record of ones ends the list.
    """
    found = {}
    for shard in cas.rglob("*.mdb"):
        records = struct.iter_unpack("<4Q2I8x", shard.read_bytes()[48:][: (shard.stat().st_size - 48) // 48 * 48])
        for *xet, flags, segments in records:
            if xet == [2**64 - 1] * 4:
                break
            for _ in range(segments * (2 if flags >> 31 & 1 else 1)):
                next(records)
            if flags >> 30 & 1:
                found[spell(next(records)[:4])] = spell(xet)
    return found


def spell(words: Any) -> str:
    return "".join(f"{word:016x}" for word in words)


class Server(ThreadingHTTPServer):
    """A server that prints nothing about connections that a test breaks."""

    def handle_error(self, *_: object) -> None: ...


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serves the double while the block runs."""
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def use(hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points the Hub client of this process and its children at the double."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HUB_DISABLE_XET": hub.cas is None,
        "HF_HUB_CACHE": str(root / "home" / "hub"),
        "HF_XET_CACHE": str(root / "home" / "xet"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    for name, value in {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(root / "home"),
        "HF_HUB_DISABLE_XET": "1" if hub.cas is None else "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1",  # Xet's client is not Python and really waits
        "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
    }.items():
        monkeypatch.setenv(name, value)
    huggingface_hub.utils.disable_progress_bars()


class Handler(BaseHTTPRequestHandler):
    """The calls that huggingface_hub makes, each a method below."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer's head and body are two packets
    hub: Hub

    def log_message(self, *_: object) -> None: ...

    def handle_one(self) -> None:
        path = unquote(urlparse(self.path).path)
        with self.hub.lock:
            self.hub.requests.append((self.command, path, self.headers.get("Range") or ""))
            fault = self.hub.fault(len(self.hub.requests), path)
        self.sent = self.read_body()
        if fault == "stall":
            self.wait_for_the_client_to_go()
        if fault in ("drop", "stall"):
            self.close_connection = True
            return
        try:
            if isinstance(fault, Answer):
                raise fault
            answer = refuse(fault, "Injected") if isinstance(fault, int) else self.route(path)
        except Answer as refused:
            answer = refused
        if fault == "lost":
            self.close_connection = True
        else:
            self.write(answer, cut=fault in ("cut", "hang"))
        if fault == "hang":
            self.wait_for_the_client_to_go()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

    def wait_for_the_client_to_go(self) -> None:
        self.hub.stalled.set()
        with suppress(ConnectionError):
            self.rfile.read(1)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def write(self, answer: Answer, cut: bool = False) -> None:
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for key, value in ({"Content-Length": str(len(body))} | answer.headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with suppress(ConnectionError):
            self.wfile.write(body[: len(body) * 2 // 3] if cut else body)
        self.close_connection = self.close_connection or cut

    def json(self) -> Any:
        return json.loads(self.sent or b"{}")

    def route(self, path: str) -> Answer:
        writes = self.command != "GET" and self.command != "HEAD" and not path.startswith(("/lfs/", "/api/validate"))
        if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return refuse(401, "Unauthorized")
        for pattern, method in ROUTES:
            if match := pattern.fullmatch(path):
                with self.hub.lock:
                    return method(self, *match.groups())
        return refuse(404, f"no route {path}")

    def repo(self, name: str) -> Repository:
        repo = self.hub.repositories.get(name)
        if repo is None or (repo.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            raise refuse(404, "RepoNotFound")
        return repo

    def commit_of(self, repo: Repository, revision: str) -> str:
        oid = repo.resolve(revision)
        if oid is None:
            raise refuse(404, "RevisionNotFound")
        return oid

    # ---- repositories and names ------------------------------------------------------------------------------------

    def create(self) -> Answer:
        asked = self.json()
        name = f"{asked.get('organization') or 'acme'}/{asked['name']}"
        if name in self.hub.repositories:
            return Answer(409, {"error": "exists", "url": f"{self.hub.url}/{name}"})
        root = hashlib.sha1(name.encode()).hexdigest()
        files = {".gitattributes": self.hub.small(b"*.bin filter=lfs\n")}
        self.hub.repositories[name] = Repository(
            {root: files}, {"main": root}, private=asked.get("private") or asked.get("visibility") == "private"
        )
        return Answer(body={"url": f"{self.hub.url}/{name}", "name": name, "id": "0"})

    def validate_yaml(self) -> Answer:
        """Validates like the Hub: the front matter must be YAML, and its fields must have the Hub's formats."""
        front = re.match(r"---\n(.*?)\n---", self.json()["content"], re.DOTALL)
        try:
            data = yaml.safe_load(front[1]) if front else {}
            assert re.fullmatch(r"[a-z0-9.-]+", data.get("license", "x"))
            assert all(re.fullmatch(r"[a-z]{2,3}", language) for language in data.get("language", []))
            assert data.get("base_model_relation", "quantized") in ("quantized", "finetune", "adapter", "merge")
            assert all("metrics" in result for model in data.get("model-index", []) for result in model["results"])
        except (yaml.YAMLError, AssertionError, AttributeError) as error:
            return Answer(400, {"errors": [{"message": str(error)}], "warnings": []})
        return Answer(body={"errors": [], "warnings": []})

    def refs(self, name: str) -> Answer:
        repo = self.repo(name)

        def listed(names: dict[str, str], kind: str) -> list[dict[str, str]]:
            return [{"name": k, "ref": f"refs/{kind}/{k}", "targetCommit": v} for k, v in names.items()]

        return Answer(
            body={"branches": listed(repo.branches, "heads"), "tags": listed(repo.tags, "tags"), "converts": []}
        )

    def branch(self, name: str, branch: str) -> Answer:
        repo = self.repo(name)
        if branch in repo.branches:
            return refuse(409, "exists")
        repo.branches[branch] = self.commit_of(repo, self.json().get("startingPoint") or "main")
        return Answer(body={})

    def tag(self, name: str, revision: str) -> Answer:
        repo, tag = self.repo(name), self.json()["tag"]
        if tag in repo.tags:
            return refuse(409, "exists")
        repo.tags[tag] = self.commit_of(repo, revision)
        return Answer(body={})

    # ---- commits ---------------------------------------------------------------------------------------------------

    def preupload(self, name: str, revision: str) -> Answer:
        repo = self.repo(name)
        held = repo.commits[self.commit_of(repo, revision)]
        files = []
        for asked in self.json()["files"]:
            path = asked["path"]
            large = bool(LARGE.fullmatch(path))
            files.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False})
            if path in held:
                files[-1]["oid"] = held[path].sha256 if held[path].large else held[path].blob
        return Answer(body={"files": files})

    def commit(self, name: str, branch: str) -> Answer:
        if self.hub.before_commit:
            self.hub.before_commit.pop()()
        repo = self.repo(name)
        head = self.commit_of(repo, branch)
        files = dict(repo.commits[head])
        for line in self.sent.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header" and value.get("parentCommit", head) != head:
                return refuse(412, "StaleParent")
            if key == "file":
                files[value["path"]] = self.hub.small(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                files[value["path"]] = self.large(value["oid"], value["size"])
            elif key == "deletedFile" and files.pop(value["path"], None) is None:
                return refuse(404, "EntryNotFound")
        oid = self.hub.commit(repo, branch, files)
        return Answer(
            body={
                "success": True,
                "commitOid": oid,
                "commitUrl": f"{self.hub.url}/{name}/commit/{oid}",
                "hookOutput": "",
            }
        )

    def large(self, digest: str, size: int) -> File:
        file = File(digest, size, blob_id(pointer(digest, size)), large=True)
        if self.hub.cas is not None and (xet := xet_hashes(self.hub.cas).get(digest)):
            return replace(file, xet=xet)
        if digest not in self.hub.objects:
            raise refuse(400, f"{digest} was never uploaded")
        return file

    # ---- uploads ---------------------------------------------------------------------------------------------------

    def batch(self, _: str) -> Answer:
        objects = []
        for asked in self.json()["objects"]:
            objects.append({"oid": asked["oid"], "size": asked["size"]})
            if asked["oid"] not in self.hub.objects:
                href = f"{self.hub.url}/lfs/{asked['oid']}"
                objects[-1]["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
        return Answer(body={"transfer": "basic", "objects": objects})

    def upload(self, digest: str) -> Answer:
        if hashlib.sha256(self.sent).hexdigest() != digest:
            return refuse(400, "other content")
        self.hub.put(self.sent)
        return Answer(body={})

    def uploaded(self, digest: str) -> Answer:
        return Answer(body={}) if digest in self.hub.objects else refuse(404, "no such object")

    def xet_token(self, name: str, kind: str, revision: str) -> Answer:
        self.commit_of(self.repo(name), revision)
        if self.hub.cas is None:
            return refuse(404, "no Xet here")
        expires = int(time.time()) + 3600
        url = f"local://{self.hub.cas}"
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "t", "X-Xet-Token-Expiration": str(expires)}
        return Answer(body={"casUrl": url, "accessToken": "t", "exp": expires}, headers=headers)

    # ---- downloads -------------------------------------------------------------------------------------------------

    def info(self, name: str, revision: str | None = None) -> Answer:
        repo = self.repo(name)
        oid = self.commit_of(repo, revision or "main")
        siblings = [
            {"rfilename": path, "size": file.size, "blobId": file.blob}
            | ({"lfs": {"sha256": file.sha256, "size": file.size, "pointerSize": 134}} if file.large else {})
            for path, file in sorted(repo.commits[oid].items())
        ]
        return Answer(body={"id": name, "sha": oid, "private": repo.private, "tags": [], "siblings": siblings})

    def tree(self, name: str, revision: str) -> Answer:
        repo = self.repo(name)
        files = repo.commits[self.commit_of(repo, revision)]
        return Answer(
            body=[{"type": "file", "path": k, "oid": v.blob, "size": v.size} for k, v in sorted(files.items())]
        )

    def resolve(self, name: str, revision: str, path: str) -> Answer:
        repo = self.repo(name)
        oid = self.commit_of(repo, revision)
        file = repo.commits[oid].get(path)
        headers = {"X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if file is None:
            raise Answer(404, {}, headers | {"X-Error-Code": "EntryNotFound"})
        headers["ETag"] = f'"{file.sha256 if file.large else file.blob}"'
        if file.large:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        if file.xet:
            token = f"{self.hub.url}/api/models/{name}/xet-read-token/{oid}"
            headers |= {"X-Xet-Hash": file.xet, "Link": f'<{token}>; rel="xet-auth"', "Content-Length": str(file.size)}
            return Answer(body=b"", headers=headers)
        content = self.hub.objects[file.sha256]
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return Answer(206, content[first : last + 1], headers)
        return Answer(200, content, headers)


REPO, REVISION = r"([^/]+/[^/]+)", r"([^/]+)"
ROUTES: list[tuple[re.Pattern[str], Callable[..., Answer]]] = [
    (re.compile(pattern.format(repo=REPO, revision=REVISION)), method)
    for pattern, method in (
        (r"/api/repos/create", Handler.create),
        (r"/api/validate-yaml", Handler.validate_yaml),
        (r"/api/models/{repo}/refs", Handler.refs),
        (r"/api/models/{repo}/branch/{revision}", Handler.branch),
        (r"/api/models/{repo}/tag/{revision}", Handler.tag),
        (r"/api/models/{repo}/preupload/{revision}", Handler.preupload),
        (r"/api/models/{repo}/commit/{revision}", Handler.commit),
        (r"/api/models/{repo}/xet-(read|write)-token/{revision}", Handler.xet_token),
        (r"/api/models/{repo}/tree/{revision}", Handler.tree),
        (r"/api/models/{repo}/revision/{revision}", Handler.info),
        (r"/api/models/{repo}", Handler.info),
        (r"/{repo}\.git/info/lfs/objects/batch", Handler.batch),
        (r"/lfs/([0-9a-f]+)", Handler.upload),
        (r"/lfs/([0-9a-f]+)/verify", Handler.uploaded),
        (r"/{repo}/resolve/{revision}/(.+)", Handler.resolve),
    )
]
