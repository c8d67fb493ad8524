"""Run one of TensorRT-LLM's tools: its lines as they come, and nothing of it left behind."""

import os
import shlex
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from engineroom.errors import CommandError
from engineroom.progress import Progress

#: Lines of output that an error keeps.
TAIL = 20

#: Seconds that a tool gets between SIGTERM and SIGKILL.
GRACE = 5.0

#: Seconds that children of a finished tool get before they are ended: they hold its output open.
_ORPHAN_GRACE = 1.0


def run(argv: Sequence[str], *, tool: str, folder: Path, progress: Progress) -> None:
    """Run ``argv`` in ``folder``; each line of its output goes to ``progress``.

    It gets a session of its own, so that the workers that trtllm-build and MPI spawn end with it, whether it
    fails, succeeds or the caller is interrupted. Raises CommandError with its last lines.
    """
    try:
        process = subprocess.Popen(
            argv,
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise CommandError(f"cannot start it ({error.strerror or error})", where=shlex.quote(argv[0])) from None
    last: deque[str] = deque(maxlen=TAIL)
    watcher = threading.Thread(target=_end_orphans, args=(process.pid,), daemon=True)
    watcher.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            words = line.rstrip()[:2000]
            if words:
                last.append(words)
                progress.say(f"{tool}: {words}")
        watcher.join()
    except BaseException:
        _end(process.pid, watcher)
        raise
    finally:
        code = process.wait()
        if process.stdout is not None:
            process.stdout.close()
    if code:
        raise CommandError(_how_it_ended(code), where=tool, fix=_what_to_do(code), tail=tuple(last))


def _how_it_ended(code: int) -> str:
    return f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"


def _what_to_do(code: int) -> str:
    # 137 and SIGKILL: nearly always the kernel's out-of-memory killer (TensorRT-LLM issues 1543, 2451).
    if code in (-signal.SIGKILL, 137):
        return "give the machine more memory (at least twice the weights) or lower the recipe's `limits`"
    return "see its last lines"


def _end_orphans(pid: int) -> None:
    """Wait until the tool has ended, leave its process id taken, and end what it has left in its session."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    threading.Event().wait(_ORPHAN_GRACE if _others_in_group(pid) else 0)
    _signal(pid, signal.SIGKILL)


def _end(pid: int, watcher: threading.Thread) -> None:
    _signal(pid, signal.SIGTERM)
    watcher.join(GRACE)
    _signal(pid, signal.SIGKILL)
    watcher.join(GRACE)


def _signal(pid: int, number: signal.Signals) -> None:
    # The process id stays taken until process.wait(), so this can reach no stranger.
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _others_in_group(pid: int) -> bool:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != pid:
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == pid:
                return True
    return False
