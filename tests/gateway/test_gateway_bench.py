"""`engineroom bench` against a gateway, and against the Triton behind it."""

import json
import subprocess
import sys

import pytest
from gateway_process import GatewayProcess

from engineroom.serving.server import TritonServer

pytestmark = pytest.mark.local


@pytest.mark.parametrize("kind", ["gateway", "triton"])
def test_every_answer_of_either_is_whole_and_counted(
    source: GatewayProcess, source_server: TritonServer, kind: str
) -> None:
    url = source.url if kind == "gateway" else f"grpc://127.0.0.1:{source_server.ports.grpc}"
    load = ["--requests", "6", "--concurrency", "2", "--input-tokens", "8", "--output-tokens", "5"]

    done = subprocess.run(
        [sys.executable, "-m", "engineroom", "bench", url, *load, "--output", "json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["requests"] == {"sent": 6, "whole": 6, "errors": {}}
    assert report["tokens"]["output"] == 30
