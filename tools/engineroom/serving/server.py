"""A real Triton server on this machine: started, waited for, heard, and stopped with its streams delivered."""

import contextlib
import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

from engineroom.errors import IncompatibleError, InputError, ServerError
from engineroom.progress import QUIET, Progress
from engineroom.repository.record import FILE, MODEL_REPOSITORY, MOUNT, BuildRecord
from engineroom.serving import keeper
from engineroom.serving.logs import NoiseFilter, is_hopeless, reason_of, useful_tail
from engineroom.serving.tree import Program, find_program

HOST = "127.0.0.1"

#: How much longer than the drain the server may take to unload its models, seconds. Idle it takes 2 to 4.
UNLOAD_SECONDS = 20.0

Log = Callable[[str], None]


@dataclass(frozen=True)
class Ports:
    """Where the server listens; 0 means any free one."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


@dataclass(frozen=True)
class Address:
    """Where clients reach a server."""

    host: str = HOST
    http: int = 8000
    grpc: int = 8001


class TritonServer:
    """One server process on one model repository. Use it as a context manager, or call :meth:`stop`."""

    def __init__(
        self,
        model_repository: Path,
        client_model: str,
        program: Program,
        *,
        ports: Ports | None = None,
        drain_seconds: int = 30,
        log: Log | None = None,
    ) -> None:
        """Describe a server; :meth:`start` starts it.

        ``client_model`` is the model that clients call: the server is ready when it is. ``ports`` of None
        are free ones. ``drain_seconds`` is how long streams in flight may take when the server is told to
        stop. ``log`` gets every line that says something, from another thread.
        """
        self.model_repository = model_repository
        self.client_model = client_model
        self.program = program
        self.ports = ports or Ports(0, 0, 0)
        self.drain_seconds = max(1, drain_seconds)
        self._asked = self.ports
        self._log = log
        self._lines: deque[str] = deque(maxlen=500)
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        #: Names of shared memory are global, so they carry ours.
        self.shared_memory = f"engineroom_{os.getpid()}_{secrets.token_hex(4)}_"

    @classmethod
    def of_tree(cls, tree: Path, program: Program, **options: Any) -> Self:
        """The server of an assembled or pulled tree; ``options`` as for the class.

        Raises :class:`~engineroom.errors.DocumentError` where it is no such tree, and
        :class:`IncompatibleError` where ``program`` cannot run its runtime.
        """
        record = BuildRecord.read(tree / FILE, made_by="engineroom assemble")
        check_runtime(record, tree, program)
        return cls((tree / MODEL_REPOSITORY).resolve(), record.model.client_model, program, **options)

    @property
    def address(self) -> Address:
        """Where clients reach this server."""
        return Address(HOST, self.ports.http, self.ports.grpc)

    @property
    def log_lines(self) -> tuple[str, ...]:
        """The last lines of the server's log, noise included."""
        return tuple(self._lines)

    @property
    def exit_code(self) -> int | None:
        """How the process ended (128 + the signal that killed it); None while it lives or was not started."""
        return self._process.poll() if self._process else None

    def start(self, *, load_seconds: float = 300, give_up: Callable[[], bool] = lambda: False) -> None:
        """Start the process and wait until the client model is ready.

        Raises :class:`ServerError` where it dies, cannot load a model, or takes longer than
        ``load_seconds``; it is stopped then. ``give_up`` is asked ten times a second; when it says True the
        waiting ends without an error.
        """
        attempts = 3 if 0 in vars(self._asked).values() else 1
        for attempt in range(attempts):
            self.launch()
            try:
                self.wait_until_ready(load_seconds, give_up=give_up)
                return
            except ServerError as error:
                self.kill()
                # Between choosing a free port and listening on it somebody else may take it.
                if "already in use" not in error.found or attempt + 1 == attempts:
                    raise
            except BaseException:
                self.kill()
                raise

    def launch(self) -> None:
        """Start the process without waiting for its models."""
        if not self.program.binary.exists():
            raise ServerError("the server is not there", where=str(self.program.binary))
        if not self.model_repository.is_dir():
            raise InputError("there is no model repository", where=str(self.model_repository))
        self.ports = _choose(self._asked)
        self._lines.clear()
        command = [
            str(self.program.binary),
            f"--model-repository={self.model_repository}",
            *self.program.arguments,
            *(
                f"--{protocol}-{what}"
                for protocol, port in (("http", self.ports.http), ("grpc", self.ports.grpc))
                for what in (f"address={HOST}", f"port={port}")
            ),
            f"--metrics-address={HOST}",
            f"--metrics-port={self.ports.metrics}",
            f"--exit-timeout-secs={self.drain_seconds}",
            f"--backend-config=python,shm-region-prefix-name={self.shared_memory}",
            # Configurations are written whole; completing them would start each Python model twice
            # (3.0 instead of 0.7 s until one small model is ready).
            "--disable-auto-complete-config",
        ]
        patience = str(self.drain_seconds + UNLOAD_SECONDS)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, patience, self.shared_memory, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(self.program.variables),
            # Ctrl-C in a terminal goes to the whole group of the foreground: it is for us, not for the server.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="triton-log", daemon=True)
        self._reader.start()

    def wait_until_ready(self, load_seconds: float = 300, *, give_up: Callable[[], bool] = lambda: False) -> None:
        """Wait until the client model answers, as :meth:`start` does, but leave the process as it is."""
        until = time.monotonic() + load_seconds
        while not give_up():
            if self.is_ready():
                return
            if self.exit_code is not None:
                self._join()
                raise self._failure(f"the server ended with exit code {self.exit_code} before it was ready")
            if is_hopeless(self.log_lines):
                raise self._failure("the server cannot start a model")
            if time.monotonic() > until:
                raise self._failure(
                    f"the model {self.client_model} was not ready after {load_seconds:g} s",
                    fix="give it longer if it is still loading",
                )
            time.sleep(0.1)

    def is_ready(self) -> bool:
        """Whether the client model would take a request now."""
        connection = http.client.HTTPConnection(HOST, self.ports.http, timeout=2)
        try:
            connection.request("GET", f"/v2/models/{self.client_model}/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def request_stop(self) -> None:
        """Ask the server to stop: nothing new is taken, streams in flight are delivered. Returns at once."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """Stop the server, wait for it, and return its exit code (0: all streams were delivered).

        Streams have ``drain_seconds``; a server that then does not end is killed. Stopped twice, it stays stopped.
        """
        self.request_stop()
        return self._wait(self.drain_seconds + UNLOAD_SECONDS + 5)

    def kill(self) -> int:
        """End the server now; streams are cut."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        return self._wait(5)

    def failure(self) -> ServerError:
        """The error of a server that has died by itself."""
        self._join()
        return self._failure(f"the server died with exit code {self.exit_code}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._process:
            self.stop()

    def _wait(self, seconds: float) -> int:
        if self._process is None:
            return 0
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            # The keeper itself hangs. Its death takes the server along (PR_SET_PDEATHSIG).
            self._process.kill()
            self._process.wait()
            keeper.remove_shared_memory(self.shared_memory)
        self._join()
        if self._process.stdin:
            self._process.stdin.close()
        return self._process.returncode

    def _join(self) -> None:
        if self._reader and self._reader is not threading.current_thread():
            self._reader.join(5)

    def _read(self) -> None:
        process, noise = self._process, NoiseFilter()
        if process is None or process.stdout is None:
            return
        with process.stdout as stream:
            for raw in stream:
                line = raw.decode(errors="replace").rstrip()
                self._lines.append(line)
                if self._log and noise.keeps(line):
                    # A closed terminal must not stop the reading: the server would block on a full pipe.
                    with contextlib.suppress(OSError, ValueError):
                        self._log(line)

    def _failure(self, found: str, *, fix: str = "") -> ServerError:
        reason = reason_of(self.log_lines)
        return ServerError(
            f"{found}: {reason}" if reason else found,
            where=f"Triton on {self.model_repository}",
            fix=fix,
            tail=useful_tail(self.log_lines),
        )


def check_runtime(record: BuildRecord, tree: Path, program: Program) -> None:
    """Raise :class:`IncompatibleError` where ``program`` cannot run what ``record`` describes."""
    runtime = record.inputs.runtime
    if runtime != "ctranslate2" and program.private:
        image = record.inputs.image or "the Triton image of its TensorRT-LLM release"
        raise IncompatibleError(
            f"runtime {runtime} needs TensorRT-LLM, which this machine's {program.title} does not have",
            where=str(tree),
            fix=f"run `engineroom serve` inside {image}",
        )
    if runtime == "tensorrt" and tree.resolve() != Path(MOUNT):
        raise IncompatibleError(
            f"the configuration of runtime tensorrt names its engine below {MOUNT}, where this tree does not lie",
            where=str(tree),
            fix=f"mount or link the tree at {MOUNT}",
        )


def serve_forever(
    tree: Path,
    *,
    cache: Path,
    ports: Ports | None = None,
    load_seconds: float = 300,
    drain_seconds: int = 30,
    log: Log | None = None,
    ready: Callable[[TritonServer], None] | None = None,
    progress: Progress = QUIET,
) -> int:
    """Serve ``tree`` until SIGINT or SIGTERM; then deliver the streams in flight and return 130 or 0.

    ``ready`` is called once, when the client model takes requests. A second signal cuts the streams. To be
    called in the main thread. Raises :class:`ServerError` where the server does not start, or dies, or still
    had streams in flight after ``drain_seconds``.
    """
    with _Signals() as asked:
        program = find_program(cache, progress=progress)
        server = TritonServer.of_tree(tree, program, ports=ports, drain_seconds=drain_seconds, log=log)
        # From here on a signal is only noted: the server must be stopped with care, not by an exception.
        asked.noted_only = True
        with server:
            with progress.task(f"loading {server.client_model}", None, unit=""):
                server.start(load_seconds=load_seconds, give_up=lambda: bool(asked.numbers))
            if not asked.numbers and ready:
                ready(server)
            while not asked.numbers:
                if server.exit_code is not None:
                    raise server.failure()
                time.sleep(0.1)
            progress.say(f"stopping: streams in flight have {server.drain_seconds} s; again to cut them")
            server.request_stop()
            while server.exit_code is None and len(asked.numbers) == 1:
                time.sleep(0.05)
            if server.exit_code is None:
                server.kill()
            elif server.exit_code != 0 and any("Exit timeout expired" in line for line in server.log_lines):
                raise ServerError(
                    f"streams in flight did not end within {server.drain_seconds} s and may have been cut",
                    where=f"Triton on {server.model_repository}",
                    fix="allow a longer drain",
                    tail=useful_tail(server.log_lines),
                )
        return asked.exit_code


class _Signals:
    """SIGINT and SIGTERM while serving: an exit at first, then a note."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.noted_only = False
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C; 0 after SIGTERM, which is how a service manager ends what went well."""
        return 130 if self.numbers and self.numbers[0] == signal.SIGINT else 0

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.numbers.append(number)
        if not self.noted_only:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(0)


def _choose(asked: Ports) -> Ports:
    """The ports asked for, with a free one for each 0. Raises :class:`ServerError` where one is taken."""
    with contextlib.ExitStack() as held:
        chosen = [held.enter_context(_bound(name, port)) for name, port in vars(asked).items()]
        return Ports(*(listener.getsockname()[1] for listener in chosen))


@contextlib.contextmanager
def _bound(name: str, port: int) -> Iterator[socket.socket]:
    with socket.socket() as listener:
        # As Triton binds: a port whose last connections are still closing is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except (OSError, OverflowError) as error:
            words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ServerError(
                f"port {port} cannot be used for {name} ({words})",
                where=HOST,
                fix="end the program that uses it, or choose another port (0: a free one)",
            ) from None
        yield listener
