"""One HTTP connection: uvicorn's, with bounds on the size of a request's head and on the time until it is there."""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Request line and headers together. A cookie has at most 4 KB, a proxy adds some headers of its own.
MAX_HEAD_BYTES = 32 << 10
HEAD_SECONDS = 15.0

_WORDS = {
    400: ("Bad Request", "this is not HTTP"),
    408: ("Request Timeout", f"the request's headers had not arrived after {HEAD_SECONDS:.0f} s"),
    431: ("Request Header Fields Too Large", f"the request's headers are larger than {MAX_HEAD_BYTES:,} bytes"),
}


class Connection(HttpToolsProtocol):
    """A connection of one client."""

    def connection_made(self, transport: Any) -> None:
        """A client has connected."""
        super().connection_made(transport)
        self._refusal = 400
        self._head_bytes = 0
        self._patience: asyncio.TimerHandle | None = None
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._head_is_there()
        super().connection_lost(exc)
        # Uvicorn does it only where the client said goodbye; a reset would keep all of this for 75 s.
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Bytes have come: of a head, of a body, or of both."""
        super().data_received(data)
        if self._patience is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431)

    def on_message_begin(self) -> None:
        """The first byte of a request has come."""
        super().on_message_begin()
        self._expect_head()
        # For an answer whose client does not read it: see AnswerResponse.
        self.scope["state"]["transport"] = self.transport

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._head_is_there()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._refusal = 431
            raise ValueError(_WORDS[431][1])  # uvicorn then calls send_400_response
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, in the form of all other refusals."""
        self._refuse(self._refusal)

    def _expect_head(self) -> None:
        self._head_bytes = 0
        if self._patience is None:
            self._patience = self.loop.call_later(HEAD_SECONDS, self._refuse, 408)

    def _head_is_there(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _refuse(self, status: int) -> None:
        self._head_is_there()
        if self.transport.is_closing():
            return
        reason, words = _WORDS[status]
        error = {"message": words, "type": "invalid_request_error", "param": None, "code": "bad_http"}
        body = json.dumps({"error": error}).encode()
        head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()
