"""Real S3 servers on this machine: how to start, reach and stop them."""

import datetime
import hashlib
import hmac
import http.client
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

KEY, SECRET = "engineroom-tests", "engineroom-secret"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program(name: str) -> Path:
    path = Path(sys.executable).parent / name
    if not path.exists():
        pytest.skip(f"{name} is not installed beside this Python (extra `dev`)")
    return path


def use_endpoint(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    for name, value in environment(port).items():
        monkeypatch.setenv(name, value)


def environment(port: int) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }


def wait_for_port(server: "subprocess.Popen[bytes]", port: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert server.poll() is None, "the server ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"nothing listens on port {port} after {seconds} s")


def stop(server: "subprocess.Popen[bytes]") -> None:
    server.kill()  # its data goes too, and SeaweedFS takes more than 10 s to end when asked
    server.wait(10)


def make_bucket(port: int, bucket: str) -> None:
    """A signed PUT, with nothing but the standard library: obstore cannot make buckets."""

    def sign(key: bytes, text: str) -> bytes:
        return hmac.new(key, text.encode(), hashlib.sha256).digest()

    last = ""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # the port may answer before the filer behind it does
        now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        empty = hashlib.sha256(b"").hexdigest()
        host = f"127.0.0.1:{port}"
        signed = "host;x-amz-content-sha256;x-amz-date"
        headers = f"host:{host}\nx-amz-content-sha256:{empty}\nx-amz-date:{now}\n"
        request = hashlib.sha256(f"PUT\n/{bucket}\n\n{headers}\n{signed}\n{empty}".encode()).hexdigest()
        scope = f"{now[:8]}/us-east-1/s3/aws4_request"
        key = sign(sign(sign(sign(f"AWS4{SECRET}".encode(), now[:8]), "us-east-1"), "s3"), "aws4_request")
        signature = sign(key, f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{request}").hex()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request(
                "PUT",
                f"/{bucket}",
                headers={
                    "x-amz-date": now,
                    "x-amz-content-sha256": empty,
                    "Authorization": f"AWS4-HMAC-SHA256 Credential={KEY}/{scope}, "
                    f"SignedHeaders={signed}, Signature={signature}",
                },
            )
            answer = connection.getresponse()
            last = f"{answer.status} {answer.read()[:300]!r}"
            connection.close()
            if answer.status in {200, 409}:
                return
        except OSError as error:
            last = str(error)
        time.sleep(0.5)
    raise AssertionError(f"cannot make the bucket: {last}")
