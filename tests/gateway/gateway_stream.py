"""A client that opens a stream, and reads it when it is told to."""

import http.client
import json
from typing import Any

from gateway_process import GatewayProcess

#: 900 tokens, whatever the model says.
LONG = {"model": "smollm2", "prompt": "a b c d", "max_tokens": 900, "ignore_eos": True, "stream": True}


class Stream:
    def __init__(self, gateway: GatewayProcess, body: dict[str, Any]) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
        self.connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})

    def begin(self) -> "Stream":
        """Wait for the first bytes of the answer."""
        self.response = self.connection.getresponse()
        assert self.response.status == 200, self.response.read()
        assert self.response.readline().startswith(b"data: ")
        return self

    def rest(self) -> list[dict[str, Any]]:
        """The other events; the last of a whole answer is `done`."""
        events = [line[6:] for line in self.response.read().decode().splitlines() if line.startswith("data: ")]
        return [{"done": True} if event == "[DONE]" else json.loads(event) for event in events]

    def close(self) -> None:
        self.connection.close()
