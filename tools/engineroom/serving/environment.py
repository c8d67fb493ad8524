"""The private Python environment of the local Triton server: made once under the cache, reused afterwards.

The server's Python backend needs numpy below 2 and the shared libpython of the minor version that its
stub was made for; the tool needs neither. So they never share an environment, as server and client
would not in production.

A folder ``runtime/<hash>`` counts only with its :class:`Marker`, written last: a virtual environment
cannot be renamed into place, because paths are written inside, so it is made where it stays.
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engineroom.documents import Document, digest_of
from engineroom.errors import DocumentError, ServerError
from engineroom.progress import QUIET, Progress

REQUIREMENTS = Path(__file__).with_name("runtime-requirements.txt")
MARKER = "runtime.json"

#: numpy 1.26, the last below 2, has no wheels for Python 3.13.
MINORS = ((3, 12), (3, 11))

#: Asks an interpreter what it is. LIBDIR is where the shared library of most builds lies; builds that were
#: moved after they were made keep it below their prefix.
_PROBE = """
import importlib.util, json, sys, sysconfig
print(json.dumps({
    "executable": getattr(sys, "_base_executable", None) or sys.executable,
    "version": list(sys.version_info[:3]),
    "folders": [sysconfig.get_config_var("LIBDIR"), sys.base_prefix + "/lib"],
    "venv": importlib.util.find_spec("venv") is not None,
}))
"""


class Marker(Document):
    """Says that an environment is whole, and what it was made from."""

    requirements: str
    """SHA-256 of the pins."""
    executable: str
    """The interpreter that the environment was made from."""
    version: list[int]
    libpython: str


@dataclass(frozen=True)
class Interpreter:
    """A Python that the backend's stub can load."""

    executable: Path
    version: tuple[int, int, int]
    libpython: Path
    """The shared library: libpython3.12.so.1.0."""


@dataclass(frozen=True)
class Environment:
    """A finished private environment."""

    folder: Path
    interpreter: Interpreter

    @property
    def bin(self) -> Path:
        """Programs, ``python`` among them."""
        return self.folder / "venv" / "bin"

    @property
    def site(self) -> Path:
        """Where the packages are."""
        major, minor, _ = self.interpreter.version
        return self.folder / "venv" / "lib" / f"python{major}.{minor}" / "site-packages"

    @property
    def triton(self) -> Path:
        """The server's files inside the nvidia-pytriton wheel."""
        return self.site / "pytriton" / "tritonserver"


def ensure_environment(cache: Path, *, progress: Progress = QUIET) -> Environment:
    """The private environment below ``cache``, made now where there is none.

    Finding it takes milliseconds, making it about half a minute. Two processes never make it twice:
    the second waits for the first. Raises :class:`ServerError` where no interpreter fits, or pip fails.
    """
    root = cache / "runtime"
    if found := _find(root):
        progress.say(f"runtime environment: reused {found.folder}")
        return found
    interpreter = find_interpreter()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / "lock", progress) as handle:
            if found := _find(root):
                progress.say(f"runtime environment: reused {found.folder}, which another process has just made")
                return found
            return _make(root, interpreter, handle, progress)
    except OSError as error:
        raise ServerError(
            f"cannot make the server's private environment ({error.strerror or error})",
            where=str(error.filename or root),
            fix="free some space (it takes 400 MB) or point ENGINEROOM_CACHE at another folder",
        ) from None


def find_interpreter() -> Interpreter:
    """A Python 3.12 or 3.11 with a shared libpython: this one, or one on PATH, of pyenv or of the system.

    Raises :class:`ServerError` with what was found instead and what to install.
    """
    seen: list[str] = []
    for candidate in _candidates():
        facts = _probe(candidate)
        if facts is None:
            continue
        interpreter, obstacle = facts
        if interpreter:
            return interpreter
        if obstacle not in seen:
            seen.append(obstacle)
    raise ServerError(
        "the local Triton server needs a Python 3.12 or 3.11 with its shared library, and there is none"
        + (f" ({'; '.join(seen)})" if seen else ""),
        fix="install one (Debian and Ubuntu: apt install python3 libpython3-dev; pyenv: "
        "PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install 3.12), or an NVIDIA tritonserver on PATH",
    )


def _candidates() -> Iterator[Path]:
    """Interpreters worth asking, nearest first, each once."""
    names = [f"python{major}.{minor}" for major, minor in MINORS]
    own = getattr(sys, "_base_executable", None) or sys.executable
    found = [Path(own)]
    found += [Path(where) for name in names if (where := shutil.which(name))]
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for major, minor in MINORS:
        found += sorted(versions.glob(f"{major}.{minor}.*/bin/python{major}.{minor}"), reverse=True)
    found += [Path(folder, name) for folder in ("/usr/bin", "/usr/local/bin") for name in names]
    seen: set[str] = set()
    for path in found:
        if path.is_file() and str(path) not in seen:
            seen.add(str(path))
            yield path


def _probe(candidate: Path) -> tuple[Interpreter | None, str] | None:
    """The interpreter, or why it does not fit. None where it does not run (a pyenv shim of no version)."""
    try:
        answer = subprocess.run(
            [candidate, "-I", "-c", _PROBE], capture_output=True, timeout=20, check=True, env=clean_variables()
        )
        facts = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    major, minor, micro = facts["version"]
    name = f"{facts['executable']} is {major}.{minor}"
    if (major, minor) not in MINORS:
        return None, name
    if not facts["venv"]:
        return None, f"{name} without its venv module"
    for folder in facts["folders"]:
        # The stub is linked against this name; any other libpython, even of another patch level, breaks it.
        library = Path(folder or "/nonexistent") / f"libpython{major}.{minor}.so.1.0"
        if library.exists():
            return Interpreter(Path(facts["executable"]), (major, minor, micro), library), ""
    return None, f"{name} without a shared library"


def clean_variables() -> dict[str, str]:
    """This process's environment variables without those that would lead another Python to our packages."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTHON") and name not in ("VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    }


def _find(root: Path) -> Environment | None:
    pins = _pins()
    for path in sorted(root.glob(f"*/{MARKER}")):
        try:
            marker = Marker.read(path, made_by="engineroom serve")
        except DocumentError:
            continue
        major, minor, micro = marker.version
        found = Environment(
            path.parent, Interpreter(Path(marker.executable), (major, minor, micro), Path(marker.libpython))
        )
        # An interpreter that was since removed takes the environment with it.
        needed = (found.bin / "python", found.interpreter.libpython, found.triton / "bin" / "tritonserver")
        if marker.requirements == pins and all(path.exists() for path in needed):
            return found
    return None


def _pins() -> str:
    return hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()


@contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[int]:
    """Hold ``path`` alone. The kernel lets go of it when the last process that has it open ends."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say("runtime environment: another process is making it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _make(root: Path, interpreter: Interpreter, lock: int, progress: Progress) -> Environment:
    marker = Marker(
        requirements=_pins(),
        executable=str(interpreter.executable),
        version=list(interpreter.version),
        libpython=str(interpreter.libpython),
    )
    folder = root / digest_of(marker.model_dump(mode="json"))[:16]
    environment = Environment(folder, interpreter)
    version = ".".join(map(str, interpreter.version))
    progress.say(
        f"runtime environment: making {folder} with Python {version} (once; downloads 120 MB, about half a minute)"
    )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    count = sum(1 for line in REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#"))
    with progress.task("packages of the server", count, unit="") as task:
        _run([interpreter.executable, "-I", "-m", "venv", "--without-pip", folder / "venv"], lock)
        pip = _pip(environment.bin / "python", lock)
        install = ["install", "--no-deps", "--only-binary", ":all:", "--progress-bar", "off"]
        for line in _lines([*pip, *install, "--requirement", REQUIREMENTS], lock):
            if line.startswith(("Collecting", "Processing")):
                task.advance(1)
    # A served tree stays as it was published: no byte code beside model.py. The embedded Python of the
    # backend's stub does not read PYTHONDONTWRITEBYTECODE (seen with 2.51), but it reads its site folder.
    (environment.site / "engineroom.pth").write_text("import sys; sys.dont_write_bytecode = True\n")
    marker.write(folder / MARKER)
    return environment


def _pip(python: Path, lock: int) -> list[str | Path]:
    """The command of a pip that installs for ``python``: our own, which saves installing another, if it can."""
    if importlib.util.find_spec("pip"):
        release = importlib.metadata.version("pip").split(".")
        if (int(release[0]), int(release[1])) >= (22, 3):  # the first with --python
            return [sys.executable, "-I", "-m", "pip", "--python", python]
    _run([python, "-I", "-m", "ensurepip"], lock)
    return [python, "-I", "-m", "pip"]


def _run(command: list[str | Path], lock: int) -> None:
    for _ in _lines(command, lock):
        pass


def _lines(command: list[str | Path], lock: int) -> Iterator[str]:
    """The output of ``command``, line by line. Raises :class:`ServerError` where it fails.

    The command inherits the lock: should this process be killed, nobody begins anew while it still writes.
    """
    tail: deque[str] = deque(maxlen=30)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=clean_variables(),
        pass_fds=(lock,),
    )
    with process:
        try:
            for line in process.stdout or ():
                tail.append(line.rstrip())
                yield tail[-1]
        except BaseException:
            process.kill()
            raise
    if process.returncode == 0:
        return
    errors = [match[1] for line in tail if (match := re.match(r"(?:ERROR: |Error: )(.+)", line))]
    reason = errors[-1] if errors else next((line for line in reversed(tail) if line), "it said nothing")
    raise ServerError(
        f"making the server's private environment failed: {reason}",
        where=" ".join(Path(part).name for part in command[:4]),
        fix="check the network and pip's settings (PIP_INDEX_URL, PIP_FIND_LINKS), then run it again; "
        "the server's wheel is for Linux on x86-64 with glibc 2.35 or newer",
        tail=tuple(tail),
    )
