"""A real Kubernetes control plane on 127.0.0.1: etcd, API server, controller manager and scheduler, as child processes.

No kubelet: objects are admitted, stored, defaulted, scaled and collected as on any cluster, but no container starts.
"""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import trustme
import yaml

START_SECONDS = 180
"""Until everything answers: 4 s on an idle machine, but these start while others compile."""

ADMIN_GROUP = "system:masters"
"""Whom Kubernetes allows everything."""

FRONT_PROXY = "front-proxy-client"
"""As whom the API server calls aggregated ones."""


class ControlPlaneError(Exception):
    """A program of the control plane did not start; the text holds its last words."""


class ControlPlane:
    """Start with ``with ControlPlane(tools, folder) as cluster``; on exit everything is stopped, by process id."""

    def __init__(self, tools: Path, folder: Path) -> None:
        self.folder = folder
        self.kubeconfig = folder / "admin.kubeconfig"
        self.authority = trustme.CA()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        """By name, in the order of their start."""
        self._tools = tools
        self._port = 0

    def __enter__(self) -> "ControlPlane":
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process, the last started first. An API server whose etcd is gone does not end when asked."""
        for process in reversed(self.processes.values()):
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()

    def command(self, *words: str) -> list[str]:
        """A kubectl command line on this cluster."""
        return [str(self._tools / "kubectl"), f"--kubeconfig={self.kubeconfig}", *words]

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """What kubectl prints. Raises AssertionError with what it complained about."""
        done = subprocess.run(
            self.command(*words), input=stdin, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout

    def refused(self, *words: str, stdin: str | None = None) -> str:
        """What kubectl complains about when the API server refuses."""
        done = subprocess.run(
            self.command(*words), input=stdin, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode != 0, f"kubectl {' '.join(words)} was to be refused"
        return done.stderr

    def get(self, *words: str) -> dict[str, Any]:
        """An object, or a list of them, as JSON."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *words, "--output=json"))
        return found

    def apply(self, objects: Sequence[dict[str, Any]], *options: str) -> str:
        """Apply objects on the server's side."""
        return self.kubectl(
            "apply", "--server-side", *options, "--filename=-", stdin=yaml.safe_dump_all(objects, sort_keys=False)
        )

    def make_namespace(self, name: str, *, pod_security: str) -> None:
        """A namespace with a Pod Security level, ready for pods."""
        labels = {"pod-security.kubernetes.io/enforce": pod_security}
        self.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}])
        # No pod is admitted before its namespace has an account, which a controller makes.
        self.kubectl("wait", "--for=create", "serviceaccount/default", f"--namespace={name}", "--timeout=240s")

    def wait_for(self, what: str, happened: Callable[[], object], seconds: float = 240) -> None:
        """Ask again and again until ``happened`` returns something true."""
        deadline = time.monotonic() + seconds
        while not happened():
            self._require_alive()
            assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
            time.sleep(0.2)

    def _require_alive(self) -> None:
        for name, process in self.processes.items():
            if process.poll() is not None:
                log = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
                raise ControlPlaneError(f"{name} ended with {process.returncode}: {log[-3000:]}")

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        peer, client, self._port = free_ports(3)
        self._certify()
        etcd = f"http://127.0.0.1:{client}"
        self._run(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
            # Its data are thrown away with the test.
            "--unsafe-no-fsync",
        )
        path = self.folder.joinpath
        self._run(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self._port}",
            # The Service `kubernetes` would need an address that is not loopback.
            "--endpoint-reconciler-type=none",
            f"--tls-cert-file={path('apiserver.pem')}",
            f"--tls-private-key-file={path('apiserver.key')}",
            f"--client-ca-file={path('ca.pem')}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={path('tokens.key')}",
            f"--service-account-signing-key-file={path('tokens.key')}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--requestheader-client-ca-file={path('ca.pem')}",
            f"--requestheader-allowed-names={FRONT_PROXY}",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--proxy-client-cert-file={path('front-proxy.pem')}",
            f"--proxy-client-key-file={path('front-proxy.key')}",
        )
        self.wait_for("the API server's start", self._is_ready, START_SECONDS)
        self._run(
            "kube-controller-manager",
            *self._identity("controller-manager"),
            "--leader-elect=false",
            "--secure-port=0",
            f"--service-account-private-key-file={path('tokens.key')}",
            f"--root-ca-file={path('ca.pem')}",
            "--use-service-account-credentials=true",
            # The defaults are 15 s and 30 s: a test would mostly wait.
            "--horizontal-pod-autoscaler-sync-period=1s",
            "--horizontal-pod-autoscaler-initial-readiness-delay=1s",
        )
        self._run("kube-scheduler", *self._identity("scheduler"), "--leader-elect=false", "--secure-port=0")
        self.wait_for("the controllers' start", self._has_accounts, START_SECONDS)

    def _is_ready(self) -> bool:
        probe = self.command("get", "--raw=/readyz")
        return subprocess.run(probe, capture_output=True, check=False, timeout=60).returncode == 0

    def _has_accounts(self) -> bool:
        probe = self.command("get", "serviceaccount", "default", "--namespace=default")
        return subprocess.run(probe, capture_output=True, check=False, timeout=60).returncode == 0

    def _run(self, name: str, *flags: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [str(self._tools / name), *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={"PATH": os.defpath, "HOME": str(self.folder)},
            )

    def _certify(self) -> None:
        self.authority.cert_pem.write_to_path(str(self.folder / "ca.pem"))
        self.certify("apiserver", "127.0.0.1", "localhost", "kubernetes.default.svc")
        self.certify("front-proxy", user=FRONT_PROXY)
        self.certify("admin", user="admin", group=ADMIN_GROUP)
        for name in ("controller-manager", "scheduler"):
            self.certify(name, user=f"system:kube-{name}")
        # Tokens of service accounts are signed with RSA.
        tokens = self.authority.issue_cert("localhost", key_type=trustme.KeyType.RSA)
        tokens.private_key_pem.write_to_path(str(self.folder / "tokens.key"))
        for name in ("admin", "controller-manager", "scheduler"):
            self._write_kubeconfig(name)

    def certify(self, name: str, *hosts: str, user: str | None = None, group: str | None = None) -> tuple[Path, Path]:
        """Certificate and key, written as ``<name>.pem`` and ``<name>.key``."""
        # A host for users too: trustme's empty list of names is a critical extension that Go refuses to read.
        made = self.authority.issue_cert(*(hosts or ("localhost",)), common_name=user, organization_name=group)
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        made.private_key_pem.write_to_path(str(key))
        certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        return certificate, key

    def _identity(self, name: str) -> list[str]:
        path = self.folder / f"{name}.kubeconfig"
        return [f"--{flag}kubeconfig={path}" for flag in ("", "authentication-", "authorization-")]

    def _write_kubeconfig(self, name: str) -> None:
        path = self.folder.joinpath
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "test",
                    "cluster": {
                        "server": f"https://127.0.0.1:{self._port}",
                        "certificate-authority": str(path("ca.pem")),
                    },
                }
            ],
            "users": [
                {
                    "name": name,
                    "user": {
                        "client-certificate": str(path(f"{name}.pem")),
                        "client-key": str(path(f"{name}.key")),
                    },
                }
            ],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "current-context": "test",
        }
        path(f"{name}.kubeconfig").write_text(yaml.safe_dump(config), encoding="utf-8")


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now; different ones, because they are held until all are found."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports
