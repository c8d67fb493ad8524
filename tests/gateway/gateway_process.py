"""The gateway as its users start it: a process of its own, before a real Triton."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class GatewayProcess:
    process: "subprocess.Popen[bytes]"
    log: Path
    port: int
    metrics_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def requests(self) -> list[dict[str, Any]]:
        """Its lines about requests."""
        return [line for line in self.lines() if line["message"] == "request"]

    def metrics(self) -> dict[str, float]:
        """Samples by name with labels, without the prefix that all have."""
        _, text, _ = get(f"http://127.0.0.1:{self.metrics_port}/metrics")
        samples = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("engineroom_gateway_")]
        return {name.removeprefix("engineroom_gateway_"): float(value) for name, value in samples}

    def ready(self) -> int:
        return get(f"{self.url}/health/ready")[0]

    def wait(self, holds: Any, what: str, seconds: float = 30) -> None:
        """Wait until ``holds()``."""
        until = time.monotonic() + seconds
        while not holds():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, f"not within {seconds} s: {what}\n{self.log.read_text()[-2000:]}"
            time.sleep(0.02)


@contextmanager
def gateway(tree: Path, grpc_port: int, log: Path, *options: str, until_ready: bool = True) -> Iterator[GatewayProcess]:
    """A gateway on free ports, ended at the end."""
    command = [
        sys.executable, "-m", "engineroom", "gateway", "--tree", str(tree), "--upstream", f"127.0.0.1:{grpc_port}",
        "--port", "0", "--metrics-port", "0", "--accept-seconds", "0", *options,
    ]  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file)
    started = GatewayProcess(process, log, 0, 0)
    try:
        listening: list[dict[str, Any]] = []

        def listens() -> bool:
            listening[:] = [line for line in started.lines() if line["message"] == "listening"]
            return bool(listening)

        started.wait(listens, "listening")
        started.port, started.metrics_port = listening[0]["port"], listening[0]["metrics_port"]
        if until_ready:
            started.wait(lambda: started.ready() == 200, "ready")
        yield started
    finally:
        process.kill()
        process.wait()


def get(url: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    """Status, body and headers."""
    return _open(urllib.request.Request(url, headers=headers))


def post(url: str, body: Any, **headers: str) -> tuple[int, str, dict[str, str]]:
    """The same, of a body that is sent as JSON, or as it is where it is bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return _open(urllib.request.Request(url, data, {"Content-Type": "application/json", **headers}))


def error_of(answer: tuple[int, str, dict[str, str]]) -> dict[str, Any]:
    """The error object of an answer that is one."""
    error: dict[str, Any] = json.loads(answer[1])["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def _open(request: urllib.request.Request) -> tuple[int, str, dict[str, str]]:
    # A proxy from the environment would be asked for loopback addresses too.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as response:
            return response.status, response.read().decode(), {k.lower(): v for k, v in response.headers.items()}
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), {k.lower(): v for k, v in error.headers.items()}
