"""Starting, hearing and stopping a real Triton, by kill -9 too."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # its types are a package that is not needed otherwise
import pytest

import engineroom
from engineroom.errors import ServerError
from engineroom.serving.answer import Answer, Prompt
from engineroom.serving.client import ask
from engineroom.serving.keeper import SHARED_MEMORY
from engineroom.serving.server import Address, Ports, TritonServer
from engineroom.serving.tree import Program

pytestmark = pytest.mark.local

SERVE = """
import sys
from pathlib import Path
from engineroom.errors import EngineroomError
from engineroom.serving.server import Ports, serve_forever
def ready(server):
    print("ready", server.ports.http, server.ports.grpc, server.shared_memory, flush=True)
try:
    code = serve_forever(
        Path(sys.argv[1]), cache=Path(sys.argv[2]), ports=Ports(0, 0, 0), drain_seconds=int(sys.argv[3]),
        load_seconds=60, ready=ready,
    )
except EngineroomError as error:
    print("error", error, flush=True)
    code = error.exit_code
print("exit", code, flush=True)
sys.exit(code)
"""


class Serving:
    """`engineroom serve` as a process of its own."""

    def __init__(self, tree: Path, cache: Path, drain_seconds: int) -> None:
        variables = os.environ | {"PYTHONPATH": str(Path(engineroom.__file__).parent.parent)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(tree), str(cache), str(drain_seconds)],
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
        )
        assert self.process.stdout
        said = self.process.stdout.readline().split()
        assert said[:1] == ["ready"], said
        self.address = Address("127.0.0.1", int(said[1]), int(said[2]))
        self.shared_memory = said[3]
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        assert any(member.name() == "tritonserver" for member in self.family)

    def alive(self) -> list[psutil.Process]:
        return [one for one in self.family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

    def left_in_shared_memory(self) -> list[str]:
        return [path.name for path in SHARED_MEMORY.iterdir() if path.name.startswith(self.shared_memory)]

    def nothing_is_left_within(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self.alive() or self.left_in_shared_memory():
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True


@contextmanager
def serving(tree: Path, cache: Path, drain_seconds: int = 30) -> Iterator[Serving]:
    one = Serving(tree, cache, drain_seconds)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait(10)
        assert one.process.stdout
        one.process.stdout.close()
        for member in one.alive():
            member.kill()


class InFlight(threading.Thread):
    """A stream that is read in the background."""

    def __init__(self, address: Address, words: int, **options: str) -> None:
        super().__init__(daemon=True)
        self.answer: Answer = ask(address, "echo", Prompt("x " * words, max_tokens=words), **options)  # type: ignore[arg-type] # the protocol's name
        self.error: Exception | None = None
        self.start()
        while len(self.answer.pieces) < 3:
            time.sleep(0.01)

    def run(self) -> None:
        try:
            for _ in self.answer:
                pass
        except Exception as error:
            self.error = error


def test_a_server_gets_ready_says_what_matters_and_leaves_nothing(
    program: Program, make_repository: Callable[..., Path]
) -> None:
    said: list[str] = []
    repository = make_repository()
    with TritonServer(repository, "echo", program, log=said.append) as server:
        server.start(load_seconds=60)
        assert server.is_ready()
        assert list(ask(server.address, "echo", Prompt("a b")))
        code = server.stop()

    assert code == 0
    assert any("successfully loaded 'echo'" in line for line in said)
    assert not any(re.search("CUDA|NVML|DCGM|^[+|]", line) for line in said)
    assert not [path for path in SHARED_MEMORY.iterdir() if path.name.startswith(server.shared_memory)]
    # A pulled tree stays what its digests say.
    assert sorted(path.name for path in repository.rglob("*") if path.is_file()) == ["config.pbtxt", "model.py"]


def test_a_model_that_does_not_load_is_one_sentence_with_its_reason(
    program: Program, make_repository: Callable[..., Path]
) -> None:
    fail = 'parameters { key: "fail" value { string_value: "no engine in ../../engine" } }'
    server = TritonServer(make_repository(extra=fail), "echo", program)

    with pytest.raises(ServerError) as refusal:
        server.start(load_seconds=60)

    assert "model echo: RuntimeError: no engine in ../../engine" in refusal.value.found
    assert "\n" not in str(refusal.value)
    assert any("failed to load" in line for line in refusal.value.tail)
    assert server.exit_code is not None


def test_a_server_that_would_wait_for_ever_for_its_model_is_given_up(
    program: Program, make_repository: Callable[..., Path]
) -> None:
    repository = make_repository()
    (repository / "echo" / "1" / "model.py").unlink()
    server = TritonServer(repository, "echo", program)
    began = time.monotonic()

    with pytest.raises(ServerError, match="Python model file not found"):
        server.start(load_seconds=60)

    assert time.monotonic() - began < 20
    assert server.exit_code is not None


def test_a_model_that_takes_too_long_is_given_up(program: Program, make_repository: Callable[..., Path]) -> None:
    server = TritonServer(make_repository(), "ech", program)

    with pytest.raises(ServerError, match=re.escape("ech was not ready after 1.5 s")):
        server.start(load_seconds=1.5)

    assert server.exit_code is not None
    assert not [path for path in SHARED_MEMORY.iterdir() if path.name.startswith(server.shared_memory)]


def test_a_port_in_use_is_said_before_anything_is_loaded(
    program: Program, make_repository: Callable[..., Path]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = TritonServer(make_repository(), "echo", program, ports=Ports(0, port, 0))

        with pytest.raises(ServerError) as refusal:
            server.start()

    assert refusal.value.found == f"port {port} cannot be used for grpc (Address already in use)"
    assert server.exit_code is None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_delivers_the_streams_in_flight_before_the_server_ends(
    number: signal.Signals, code: int, make_tree: Callable[..., Path], cache: Path
) -> None:
    with serving(make_tree(), cache) as server:
        streams = [InFlight(server.address, 60, protocol=protocol) for protocol in ("grpc", "http")]

        server.process.send_signal(number)

        assert server.process.wait(40) == code
        for stream in streams:
            stream.join(5)
            assert stream.error is None
            assert stream.answer.summary.tokens == 60
        assert server.nothing_is_left_within(0)


def test_a_second_ctrl_c_cuts_the_streams(make_tree: Callable[..., Path], cache: Path) -> None:
    with serving(make_tree(), cache) as server:
        streams = [InFlight(server.address, 900, protocol=protocol) for protocol in ("grpc", "http")]
        began = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGINT)

        assert server.process.wait(20) == 130
        assert time.monotonic() - began < 5
        for stream in streams:
            stream.join(5)
            # An answer that was cut never looks like one that ended.
            assert isinstance(stream.error, ServerError)
            assert stream.error.found == "the server broke the answer off"
        assert server.nothing_is_left_within(0)


def test_streams_that_outlive_the_drain_may_be_cut_and_that_is_said(
    make_tree: Callable[..., Path], cache: Path
) -> None:
    with serving(make_tree(), cache, drain_seconds=1) as server:
        stream = InFlight(server.address, 250, protocol="http")
        server.process.send_signal(signal.SIGTERM)

        output = server.process.communicate(timeout=40)[0]

        assert "error" in output
        assert "streams in flight did not end within 1 s" in output
        assert server.process.returncode == 4
        stream.join(5)
        assert isinstance(stream.error, ServerError)
        assert stream.answer.summary.tokens < 250
        assert server.nothing_is_left_within(0)


def test_kill_9_of_engineroom_leaves_no_server_behind(make_tree: Callable[..., Path], cache: Path) -> None:
    with serving(make_tree(), cache) as server:
        stream = InFlight(server.address, 60)

        server.process.kill()

        stream.join(20)
        # Even then the stream is delivered first.
        assert stream.error is None
        assert stream.answer.summary.tokens == 60
        assert server.nothing_is_left_within(30)


def test_kill_9_of_the_keeper_takes_the_server_along(make_tree: Callable[..., Path], cache: Path) -> None:
    with serving(make_tree(), cache) as server:
        keeper = next(
            member
            for member in server.family
            if member.name() != "tritonserver" and member.ppid() == server.process.pid
        )

        keeper.kill()

        output = server.process.communicate(timeout=20)[0]
        assert "the server died with exit code" in output
        assert server.process.returncode == 4
        assert server.nothing_is_left_within(10)


def test_a_server_that_dies_by_itself_is_an_error(make_tree: Callable[..., Path], cache: Path) -> None:
    with serving(make_tree(), cache) as server:
        next(member for member in server.family if member.name() == "tritonserver").kill()

        output = server.process.communicate(timeout=20)[0]

        assert "the server died with exit code 137" in output
        assert server.process.returncode == 4
        assert server.nothing_is_left_within(10)
