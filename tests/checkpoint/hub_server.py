"""A Hugging Face Hub on 127.0.0.1: the routes that the real client calls, and failures on purpose.

Like the Hub, it answers the API and ``resolve`` itself and sends the content of large files from a second origin
(the CDN), which must never see a token. ``test_the_real_client_downloads_from_this_hub`` keeps it honest.
"""

import hashlib
import json
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Repository:
    files: dict[str, bytes]
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main",)
    gated: bool = False
    lists_metadata: bool = True
    """False: like some mirrors, names only."""
    claimed_sizes: dict[str, int] = field(default_factory=dict)

    def is_large(self, path: str) -> bool:
        return path.endswith((".safetensors", ".bin", ".gguf"))


@dataclass
class Fault:
    """What happens to requests whose path contains ``path``, ``times`` times (-1: always)."""

    path: str
    kind: str
    """status, truncate, reset, flip, silent, or ignore-range."""
    times: int = 1
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    after: int = 0
    """Bytes of content that still arrive."""


@dataclass
class Request:
    method: str
    path: str
    origin: str
    """hub or cdn."""
    authorization: str | None
    range: str | None
    sent: int = 0
    """Bytes of content."""


class FakeHub:
    """Use as a context manager; ``endpoint`` is what HF_ENDPOINT should hold."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.renamed: dict[str, str] = {}
        self.tokens: set[str] = {"hf_good"}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.bytes_per_second: float | None = None
        self.lock = threading.Lock()
        self._servers = [_Server(self, origin) for origin in ("hub", "cdn")]
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> "FakeHub":
        self._threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}) for server in self._servers
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes_per_second = None
        for server in self._servers:
            server.stopping.set()
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join(10)

    def add(self, name: str, files: dict[str, bytes], **facts: Any) -> Repository:
        self.repositories[name] = Repository(files, **facts)
        return self.repositories[name]

    def fail(self, path: str, kind: str, **facts: Any) -> None:
        self.faults.append(Fault(path, kind, **facts))

    def take_fault(self, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.path in path and fault.times != 0:
                    fault.times -= 1
                    return fault
        return None

    def sent(self, path: str = "") -> int:
        """Bytes of content sent so far for paths that contain ``path``."""
        with self.lock:
            return sum(request.sent for request in self.requests if path in request.path)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: FakeHub, origin: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.origin = hub, origin
        self.stopping = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server.hub
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.record = Request(
            self.command, path, self.server.origin, self.headers.get("authorization"), self.headers.get("range")
        )
        with hub.lock:
            hub.requests.append(self.record)
        self.fault = hub.take_fault(path)
        if self.fault and self.fault.kind == "status":
            self._send(self.fault.status, self.fault.body, self.fault.headers)
        elif self.fault and self.fault.kind == "silent" and self.fault.after == 0:
            self.server.stopping.wait(30)
            self.close_connection = True
        elif self.server.origin == "cdn":
            self._answer_cdn(path)
        elif path.startswith("/api/models/"):
            self._answer_api(path.removeprefix("/api/models/"), "blobs" in parse_qs(url.query))
        elif "/resolve/" in path:
            self._answer_resolve(*path[1:].split("/resolve/", 1))
        else:
            self._refuse(404, "", "Sorry, we can't find the page you are looking for.")

    def _allowed(self, name: str, *, content: bool) -> Repository | None:
        hub = self.server.hub
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        if token and token not in hub.tokens:
            self._refuse(401, "", "Invalid credentials in Authorization header")
            return None
        repository = hub.repositories.get(name)
        if repository is None:  # without a token the real Hub answers 401 here, so as not to tell private names
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
            return None
        if content and repository.gated and not token:
            self._refuse(401, "GatedRepo", f"Access to model {name} is restricted.")
            return None
        return repository

    def _answer_api(self, rest: str, blobs: bool) -> None:
        name, _, revision = rest.partition("/revision/")
        if name in self.server.hub.renamed:
            suffix = self.path.split(name, 1)[1]
            self._send(307, b"", {"Location": f"/api/models/{self.server.hub.renamed[name]}{suffix}"})
            return
        repository = self._allowed(name, content=False)
        if repository is None:
            return
        if revision not in (*repository.revisions, repository.commit, ""):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        siblings: list[dict[str, Any]] = []
        for path, content in repository.files.items():
            entry: dict[str, Any] = {"rfilename": path}
            if blobs and repository.lists_metadata:
                size = repository.claimed_sizes.get(path, len(content))
                entry |= {"size": size, "blobId": git_sha1(content)}
                if repository.is_large(path):
                    entry["lfs"] = {"sha256": sha256(content), "size": size, "pointerSize": 134}
            siblings.append(entry)
        body: dict[str, Any] = {"id": name, "sha": repository.commit, "gated": "auto" if repository.gated else False}
        body |= {"siblings": siblings, "private": False, "tags": []}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _answer_resolve(self, name: str, rest: str) -> None:
        repository = self._allowed(name, content=True)
        if repository is None:
            return
        revision, _, path = rest.partition("/")
        if revision not in (*repository.revisions, repository.commit):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif path not in repository.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
        else:
            content = repository.files[path]
            headers = {"X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
            if repository.is_large(path):
                headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{sha256(content)}"'}
                headers["Location"] = f"{self.server.hub.cdn}/{name}/{path}?signature=x"
                self._send(302, b"", headers)
            else:
                self._send_content(content, headers | {"ETag": f'"{git_sha1(content)}"'})

    def _answer_cdn(self, path: str) -> None:
        name, _, file = path[1:].rpartition("/")
        content = self.server.hub.repositories[name].files[file]
        self._send_content(content, {"ETag": f'"{sha256(content)}"', "Accept-Ranges": "bytes"})

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message, "Content-Type": "application/json"}
        self._send(status, json.dumps({"error": message}).encode(), headers | ({"X-Error-Code": code} if code else {}))

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_content(self, content: bytes, headers: dict[str, str]) -> None:
        hub, fault, start = self.server.hub, self.fault, 0
        kind = fault.kind if fault else ""
        wanted = self.record.range
        if wanted and kind != "ignore-range":
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(content):
                self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        body = content[start:]
        if kind == "flip":
            body = bytes([body[0] ^ 1]) + body[1:]
        self.send_response(206 if "Content-Range" in headers else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = fault.after if fault and kind in ("truncate", "reset", "silent") else len(body)
        while self.record.sent < min(stop, len(body)):
            block = body[self.record.sent : min(self.record.sent + 65536, stop)]
            self.wfile.write(block)
            with hub.lock:
                self.record.sent += len(block)
            if hub.bytes_per_second:
                time.sleep(len(block) / hub.bytes_per_second)
        self.wfile.flush()
        if kind in ("truncate", "reset", "silent"):
            self.close_connection = True
        if kind == "silent":
            self.server.stopping.wait(30)
        if kind == "reset":
            # A linger time of zero makes close() send RST instead of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
