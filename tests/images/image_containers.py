"""Real containers in a containerd of the test's own: hardened as Kubernetes' Pod Security `restricted` hardens them."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

#: What containerd gives to a container that asks for nothing (containerd, oci/spec.go: defaultUnixCaps).
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
    "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
)  # fmt: skip

USER = 1000

ROOT = Path(__file__).resolve().parents[2]

#: Where ci/images leaves them.
BUILT = ROOT / "build" / "images"


@dataclass(frozen=True)
class Published:
    """A model in a bucket."""

    reference: str
    """With its digest."""
    environment: dict[str, str]
    """Endpoint and credentials."""
    values: Path
    """Helm values that serve it."""
    checkpoint: Path
    """What it was built from."""


@dataclass
class Containerd:
    """A running containerd."""

    socket: Path
    folder: Path
    started: list[str] = field(default_factory=list)

    def ctr(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        command = ["ctr", f"--address={self.socket}", "--namespace=engineroom-tests", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert not check or done.returncode == 0, f"ctr {arguments[0]}: {done.stderr}"
        return done

    def load(self, archive: Path) -> str:
        """Import an image; its name."""
        before = set(self.ctr("images", "list", "--quiet").stdout.split())
        self.ctr("images", "import", str(archive))
        (name,) = set(self.ctr("images", "list", "--quiet").stdout.split()) - before
        return name

    def start(
        self,
        image: str,
        command: Sequence[str],
        *,
        mounts: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> "subprocess.Popen[str]":
        """Start a container as the image's own user (1000), with the least rights.

        Nothing is writable but ``mounts`` and /tmp; no capability, no new privileges (containerd's default), the
        runtime's seccomp profile. It has the network of this test, which has nothing but a loopback. An empty
        ``command`` is the image's own.
        """
        name = f"c{len(self.started)}"
        self.started.append(name)
        flags = ["--rm", "--net-host", "--read-only", "--seccomp"]
        flags += [f"--cap-drop=CAP_{capability}" for capability in CAPABILITIES]
        flags += [f"--env={key}={value}" for key, value in (environment or {}).items()]
        flags += [f"--mount={mount}" for mount in (*mounts, "type=tmpfs,src=tmpfs,dst=/tmp,options=mode=1777")]
        return subprocess.Popen(
            ["ctr", f"--address={self.socket}", "--namespace=engineroom-tests", "run", *flags, image, name, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        image: str,
        command: Sequence[str],
        *,
        mounts: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Start a container and wait for its end."""
        process = self.start(image, command, mounts=mounts, environment=environment)
        try:
            out, err = process.communicate(timeout=300)
        except BaseException:
            self.kill(self.started[-1])
            process.kill()
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def rights(self, name: str) -> dict[str, str]:
        """What the kernel says of a running container's first process, and whether its root is writable (rw, ro)."""
        lines = (line.split() for line in self.ctr("task", "list").stdout.splitlines()[1:])
        (process,) = [Path("/proc", pid) for task, pid, *_ in lines if task == name]
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        found = {key: status[key].split()[0] for key in ("Uid", "CapEff", "CapBnd", "NoNewPrivs")}
        mounts = [line.split() for line in (process / "mounts").read_text().splitlines()]
        (options,) = [options for _, where, _, options, *_ in mounts if where == "/"]
        return {**found, "root": options.split(",")[0]}

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        self.ctr("task", "kill", "--signal", str(int(number)), name, check=False)


@contextmanager
def containerd_server(folder: Path) -> Iterator[Containerd]:
    """A containerd with state of its own in ``folder``. Whatever still runs in it ends with it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.toml"
    socket = folder / "s"
    config.write_text(
        f"version = 2\nroot = {json.dumps(str(folder / 'root'))}\nstate = {json.dumps(str(folder / 'state'))}\n"
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f"[grpc]\naddress = {json.dumps(str(socket))}\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["containerd", "--config", str(config)], stdout=log, stderr=log)
    server = Containerd(socket, folder)
    try:
        deadline = time.monotonic() + 60
        while server.ctr("version", check=False).returncode != 0:
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "containerd does not answer"
            time.sleep(0.1)
        yield server
    finally:
        for name in server.started:
            server.kill(name)
        deadline = time.monotonic() + 30
        while server.ctr("containers", "list", "--quiet", check=False).stdout.split() and time.monotonic() < deadline:
            for name in server.started:
                server.ctr("task", "delete", "--force", name, check=False)
                server.ctr("containers", "delete", name, check=False)
        process.terminate()
        process.wait(30)
        for mount in sorted(_mounts_below(folder), reverse=True):
            subprocess.run(["umount", mount], check=False)
        shutil.rmtree(folder / "root", ignore_errors=True)


def _mounts_below(folder: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [mount for line in lines if (mount := line.split()[1]).startswith(f"{folder}{os.sep}")]
