"""A proxy that harms what passes through it, at random instants, in the ways that stores and networks do."""

import http.client
import random
import socket
import struct
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

READING = ["500", "503", "reset", "stall", "truncate", "short length", "long length", "flip", "old"]
WRITING = ["500", "503", "reset", "lost answer"]
_SKIPPED = {"connection", "keep-alive", "transfer-encoding"}


class FaultyProxy(ThreadingHTTPServer):
    """Passes HTTP on to a server on this machine, but harms a share of the requests."""

    daemon_threads = True

    def __init__(self, backend: int, *, seed: int, share: float, kinds: list[str] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.backend, self.share = backend, share
        self.kinds = kinds
        self.chance = random.Random(seed)
        self.lock = threading.Lock()
        self.done: Counter[str] = Counter()
        self.old: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def choose(self, method: str) -> str:
        """Which harm this request gets; empty for none."""
        kinds = READING if method in {"GET", "HEAD"} else WRITING
        kinds = [kind for kind in kinds if self.kinds is None or kind in self.kinds]
        with self.lock:
            if not kinds or self.chance.random() >= self.share:
                return ""
            kind = self.chance.choice(kinds)
            self.done[kind] += 1
            return kind

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def pass_on(self) -> None:
        body = self._body()
        harm = self.server.choose(self.command)
        if harm in {"500", "503"}:
            self._answer(int(harm), [], b"try again")
            return
        if harm == "reset" and self.command not in {"GET", "HEAD"}:
            self._reset()
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.server.backend, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _SKIPPED}
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body and "content-length" not in {name.lower() for name in headers}:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        data = answer.read()
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _SKIPPED]
        connection.close()
        if harm == "lost answer":
            self._reset()
            return
        key = f"{self.command} {self.path} {self.headers.get('Range', '')}"
        fresh = (answer.status, kept, data)
        status, kept, data = self.server.old.get(key, fresh) if harm == "old" else fresh
        self.server.old.setdefault(key, fresh)
        self._answer(status, kept, data, harm)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = pass_on  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, harm: str = "") -> None:
        length, sent = len(data), data
        half = data[: len(data) // 2]
        if harm == "flip" and data and status < 300:
            at = self.server.chance.randrange(len(data))
            sent = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        elif harm == "short length":
            length, sent = len(half), half
        elif harm == "long length":
            length = len(data) + 1000
        elif harm in {"reset", "stall", "truncate"}:
            sent = half
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length":
                self.send_header(name, value)
        own = next((value for name, value in headers if name.lower() == "content-length"), "0")
        self.send_header("Content-Length", own if self.command == "HEAD" else str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(sent)
        self.wfile.flush()
        if harm == "reset":
            self._reset()
        elif harm == "stall":
            self.connection.recv(1)  # until the client has enough of waiting
        if harm in {"stall", "truncate", "long length"}:
            self.close_connection = True

    def _reset(self) -> None:
        # Linger 0: what is not sent yet is dropped, and the peer gets RST.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass
