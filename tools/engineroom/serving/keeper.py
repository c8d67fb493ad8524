"""Stands between engineroom and the Triton server, so that the server never outlives the one who started it.

Run as a program of its own with the standard library only::

    keeper.py PATIENCE PREFIX COMMAND...

Standard input is a lifeline: engineroom holds its other end and never writes. When it closes, even by
kill -9, the server is asked to stop, as by SIGTERM: streams in flight are delivered, and after PATIENCE
seconds it is killed. (PR_SET_PDEATHSIG alone would fire when the *thread* that started the server ends,
and could neither wait nor tidy up; here it only guards against the death of this process.)
SIGTERM stops the server, SIGINT kills it at once. At the end nothing of the server's process group lives,
and the shared memory whose names begin with PREFIX is gone. Exits as the server did, or 128 + its signal.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory is on Linux, not a temporary file of ours
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Keep the command in ``arguments`` until it ends or is to end."""
    patience, prefix, command = float(arguments[0]), arguments[1], arguments[2:]
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    # Python writes the number of each signal here, which ends the select below.
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    try:
        # SIGPIPE stays ignored in the server too: its log has no reader once engineroom was killed, and
        # it should still deliver its streams.
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            process_group=0,
            restore_signals=False,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - this process has one thread
        )
    except OSError as error:
        print(f"error: cannot start {command[0]}: {error.strerror}", flush=True)  # noqa: T201 - this is the log
        return 127

    lifeline = [sys.stdin.fileno()]
    deadline: float | None = None
    while not _ended(server):
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([woken, *lifeline], [], [], left)
        signals = _read(woken) if woken in ready else b""
        cut = bool(lifeline and lifeline[0] in ready)
        if cut:
            lifeline = []
        if deadline is None and (cut or signal.SIGTERM in signals or signal.SIGHUP in signals):
            deadline = time.monotonic() + patience
            server.terminate()
        if signal.SIGINT in signals or (deadline is not None and time.monotonic() >= deadline):
            os.killpg(server.pid, signal.SIGKILL)
            deadline = None
    # Not reaped yet, so that the number still names this group and no other.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    code = server.wait()
    remove_shared_memory(prefix)
    return code if code >= 0 else 128 - code


def remove_shared_memory(prefix: str) -> None:
    """Remove what a killed server left in shared memory: all names that begin with ``prefix``."""
    if prefix and SHARED_MEMORY.is_dir():
        for path in SHARED_MEMORY.iterdir():
            if path.name.startswith(prefix):
                path.unlink(missing_ok=True)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _ended(server: "subprocess.Popen[bytes]") -> bool:
    return os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, 4096)
    except BlockingIOError:
        return b""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
