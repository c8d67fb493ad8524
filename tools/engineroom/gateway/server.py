"""Runs the gateway: both ports, signals, and a drain that ends with the last stream.

After SIGTERM: not ready at once; new requests are still taken for some seconds, because a cluster needs as long to
send them elsewhere; then they are refused, and running streams end. The port closes when all that is over, which
Triton's preStop hook waits for (design, section 4).
"""

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator

import uvicorn
import uvloop
from prometheus_client import start_http_server

from engineroom.errors import ServerError
from engineroom.gateway.app import Gateway
from engineroom.gateway.connection import Connection
from engineroom.gateway.keys import ApiKeys
from engineroom.gateway.metrics import Metrics
from engineroom.gateway.prepare import Preparer
from engineroom.gateway.settings import Served, Settings, read_tree
from engineroom.gateway.triton import TritonUpstream

LOG = logging.getLogger("engineroom.gateway")

#: Of the drain's time, what ending itself may take: words to streams that are cut, closing of connections.
END_SECONDS = 2.0

#: Connections that wait to be accepted.
BACKLOG = 2048

EXIT_INTERRUPTED = 130

Ready = Callable[[int, int], None]
"""Called with the ports once the model takes requests."""


def run(
    settings: Settings,
    *,
    ready: Ready | None = None,
    trouble: Callable[[], ServerError | None] = lambda: None,
) -> int:
    """Serve until SIGTERM (returns 0) or SIGINT (130), and drain. To be called in the main thread.

    ``trouble`` is asked ten times a second; what it returns is raised after closing everything. Raises
    DocumentError and InputError for a tree, keys or options that cannot be used, ServerError where a port is taken or
    answers had to be cut at the end of the drain.
    """
    served = read_tree(settings)
    keys = ApiKeys(settings.api_keys_file) if settings.api_keys_file else None
    preparer = Preparer(served)
    with contextlib.ExitStack() as stack:
        # Both bound here, so that a port that is taken is found before anything has begun.
        listener = stack.enter_context(_bound(settings.host, settings.port, "--port"))
        with _bound(settings.host, settings.metrics_port, "--metrics-port") as chosen:
            metrics_port = chosen.getsockname()[1]
        metrics = Metrics()
        metrics_server, thread = start_http_server(metrics_port, addr=settings.host, registry=metrics.registry)
        stack.callback(thread.join)
        stack.callback(metrics_server.server_close)
        stack.callback(metrics_server.shutdown)
        _allow_many_connections()
        # Threads prepare long prompts; the event loop must not wait 5 ms for the interpreter each time they do.
        sys.setswitchinterval(0.0005)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            process = _Process(settings, served, preparer, metrics, keys)
            return runner.run(process.serve(listener, metrics_port, ready, trouble))


def check_ports(settings: Settings) -> None:
    """Raise ServerError where a port is taken now, before long work that would end in it."""
    with (
        _bound(settings.host, settings.port, "--port"),
        _bound(settings.host, settings.metrics_port, "--metrics-port"),
    ):
        pass


class _Process:
    """The gateway within its event loop."""

    def __init__(
        self, settings: Settings, served: Served, preparer: Preparer, metrics: Metrics, keys: ApiKeys | None
    ) -> None:
        self._settings, self._served, self._preparer, self._metrics, self._keys = (
            settings, served, preparer, metrics, keys,
        )  # fmt: skip
        self._signals: list[int] = []
        self._signalled = asyncio.Event()

    async def serve(
        self, listener: socket.socket, metrics_port: int, ready: Ready | None, trouble: Callable[[], ServerError | None]
    ) -> int:
        settings, served = self._settings, self._served
        upstream = TritonUpstream(settings.upstream, served.record.model.client_model)
        gateway = Gateway(settings, served, self._preparer, upstream, self._metrics, self._keys)
        server = _Uvicorn(
            uvicorn.Config(
                gateway.application(),
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                # Longer than the 60 s of common proxies: whoever closes an idle connection should be the one that
                # would send on it, or a request is lost.
                timeout_keep_alive=75,
                timeout_graceful_shutdown=1,
            )
        )
        # Before it is said: whoever reads of the port connects at once.
        listener.listen(BACKLOG)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._receive, number)
        self._metrics.tasks.set_function(lambda: len(asyncio.all_tasks(loop)))
        port = listener.getsockname()[1]
        watching = asyncio.create_task(upstream.watch())
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        LOG.info(
            "listening",
            extra={
                "facts": {
                    "host": settings.host, "port": port, "metrics_port": metrics_port, "model": served.name,
                    "upstream": settings.upstream, "slots": served.slots,
                    "max_queued_requests": served.max_queued_requests,
                    "max_queued_tokens": served.max_queued_tokens,
                }
            },
        )  # fmt: skip
        failure = None
        try:
            told = False
            while not self._signals and failure is None and not serving.done():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._signalled.wait(), 0.1)
                failure = trouble()
                if not told and ready and upstream.trouble is None:
                    told = True
                    ready(port, metrics_port)
            if failure is None:
                await self._drain(gateway)
        finally:
            server.should_exit = True
            await serving
            watching.cancel()
            await upstream.close()
        if failure is not None:
            raise failure
        return EXIT_INTERRUPTED if self._signals[:1] == [signal.SIGINT] else 0

    def _receive(self, number: int) -> None:
        self._signals.append(number)
        self._signalled.set()

    async def _drain(self, gateway: Gateway) -> None:
        """Let what was taken end. Raises ServerError for what did not within its time."""
        state, settings = gateway.state, self._settings
        began, finished = time.monotonic(), state.finished
        state.draining = True
        self._metrics.draining.set(1)
        LOG.info("draining", extra={"facts": {"in_flight": state.in_flight, "seconds": settings.drain_seconds}})
        end = began + max(0.0, settings.drain_seconds - END_SECONDS)
        # A person at a terminal has no cluster that still sends requests.
        accept = 0 if self._signals[0] == signal.SIGINT else min(settings.accept_seconds, settings.drain_seconds / 2)
        while time.monotonic() < began + accept and len(self._signals) == 1:
            await asyncio.sleep(0.05)
        state.refusing = True
        while state.in_flight and time.monotonic() < end and len(self._signals) == 1:
            await asyncio.sleep(0.02)
        cut = list(state.live)
        for response in cut:
            response.cut()
        while state.in_flight and time.monotonic() < end + END_SECONDS / 2:
            await asyncio.sleep(0.02)
        facts = {
            "finished": state.finished - finished - len(cut),
            "cut": len(cut),
            "seconds": round(time.monotonic() - began, 2),
        }
        LOG.info("drained", extra={"facts": facts})
        if cut and len(self._signals) == 1:
            raise ServerError(
                f"{len(cut)} answer(s) did not end within {settings.drain_seconds:g} s and were cut",
                where="the gateway",
                fix="allow more with --drain-seconds",
            )


class _Uvicorn(uvicorn.Server):
    """Uvicorn without its own signals: it would close the port at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None of them."""
        yield


@contextlib.contextmanager
def _bound(host: str, port: int, option: str) -> Iterator[socket.socket]:
    """A listening socket. Raises ServerError where the address cannot be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ServerError(f"{host} is no address to listen on ({error.strerror or error})", where="--host") from None
    with listener:
        # A port whose last connections are still closing is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except (OSError, OverflowError) as error:
            raise ServerError(
                f"port {port} cannot be used ({getattr(error, 'strerror', None) or error})",
                where=host,
                fix=f"end the program that uses it, or choose another with {option} (0: any free one)",
            ) from None
        listener.setblocking(False)
        yield listener


def _allow_many_connections() -> None:
    """As many open files as the system lets this user have: each stream is one, and many systems begin at 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
