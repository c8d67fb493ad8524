"""Real object stores and registries on this machine: how to start, reach and stop them."""

import base64
import datetime
import hashlib
import hmac
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

KEY, SECRET = "engineroom-tests", "engineroom-secret"


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Different ports: all are held until the last is found."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


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


@contextmanager
def seaweedfs_server(folder: Path, *, bucket: str = "models", volume_mb: int = 512, metrics: int = 0) -> Iterator[int]:
    """Port of a SeaweedFS with an empty bucket: honours conditional writes. It counts at the port ``metrics``.

    Several run at once: each service has a port of its own, and those that have a fixed one and are not needed
    here (Iceberg 8181, Lance 9101) are off.
    """
    config = folder / "s3.json"
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": actions}
    config.write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    services = [f"{service}.port{kind}" for service in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    ports = dict(zip(services, free_ports(len(services)), strict=True))
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                program("weed"), "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                *(f"-{service}={port}" for service, port in ports.items()), "-filer", "-s3", f"-s3.config={config}",
                "-s3.port.iceberg=0", "-s3.port.lance=0", f"-metricsPort={metrics}",
                "-master.telemetry=false", f"-master.volumeSizeLimitMB={volume_mb}",
            ],
            stdout=log, stderr=log, cwd=folder,
        )  # fmt: skip
    try:
        wait_for_port(server, ports["s3.port"], 60)
        make_bucket(ports["s3.port"], bucket)
        yield ports["s3.port"]
    finally:
        stop(server)


@contextmanager
def rclone_server(folder: Path) -> Iterator[int]:
    """Port of rclone's S3 server on ``folder``, each subfolder a bucket: ignores conditional writes."""
    port = free_port()
    server = subprocess.Popen(
        [program("rclone"), "serve", "s3", "--auth-key", f"{KEY},{SECRET}", "--addr", f"127.0.0.1:{port}", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RCLONE_CONFIG": os.devnull},
    )
    try:
        wait_for_port(server, port, 30)
        yield port
    finally:
        stop(server)


#: Of the password `secret`, by crypt(3): the one form that the registry reads is bcrypt.
_HTPASSWD = "tests:$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n"


@contextmanager
def registry_server(folder: Path, *, guarded: bool = False, auth: dict[str, object] | None = None) -> Iterator[int]:
    """Port of Debian's docker-registry, an OCI registry; if guarded, for the user `tests` with password `secret`.

    ``auth``: its settings of that name.
    """
    binary = _installed("docker-registry")
    port = free_port()
    settings: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if guarded:
        (folder / "htpasswd").write_text(_HTPASSWD)
        auth = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
    if auth:
        settings["auth"] = auth
    (folder / "config.yml").write_text(json.dumps(settings))  # JSON is YAML
    with _running([binary, "serve", str(folder / "config.yml")], folder / "log", port):
        yield port


@contextmanager
def versitygw_server(folder: Path) -> Iterator[int]:
    """Port of a versitygw on ``folder``, each subfolder a bucket: honours conditional writes."""
    port = free_port()
    command = [_installed("versitygw"), "--access", KEY, "--secret", SECRET, "--port", f"127.0.0.1:{port}"]
    with _running([*command, "posix", str(folder)], folder.parent / "versitygw.log", port):
        yield port


#: Of every Azurite: https://learn.microsoft.com/azure/storage/common/storage-use-azurite
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def azure_emulator(folder: Path) -> Iterator[int]:
    """Port of an Azurite with a container `models`."""
    port = free_port()
    command = [_installed("azurite-blob"), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    command += ["--location", str(folder), "--silent", "--skipApiVersionCheck"]
    with _running(command, folder / "azurite.log", port):
        date = datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        headers = {"x-ms-date": date, "x-ms-version": "2021-12-02"}
        signed = "PUT\n\n\n\n\n\n\n\n\n\n\n\n" + "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        signed += f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/models\nrestype:container"
        signature = hmac.new(base64.b64decode(AZURE_KEY), signed.encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(signature).decode()}"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("PUT", f"/{AZURE_ACCOUNT}/models?restype=container", headers=headers)
        answer = connection.getresponse()
        assert answer.status == 201, answer.read()
        yield port


def _installed(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@contextmanager
def _running(command: list[str], log_file: Path, port: int) -> Iterator[None]:
    with log_file.open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for_port(server, port, 60)
        yield
    finally:
        stop(server)


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
