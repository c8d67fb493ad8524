"""What SIGTERM does: nothing that was taken is lost."""

import json
import signal
import socket
from pathlib import Path

import pytest
from gateway_process import error_of, post
from gateway_stream import LONG, Stream

from conftest import StartGateway
from engineroom.serving.server import TritonServer

pytestmark = pytest.mark.local


def test_streams_that_run_or_wait_are_finished_and_the_port_closes_last(
    source_tree: Path, source_server: TritonServer, start_gateway: StartGateway
) -> None:
    with start_gateway(source_tree, source_server, "--drain-seconds", "60") as gateway:
        running = [Stream(gateway, LONG | {"max_tokens": 300}).begin() for _ in range(4)]
        waiting = [Stream(gateway, LONG | {"max_tokens": 20}) for _ in range(6)]
        gateway.wait(lambda: gateway.metrics()["requests_waiting"] == 6, "six wait")

        gateway.process.send_signal(signal.SIGTERM)

        gateway.wait(lambda: gateway.ready() == 503, "not ready")
        refused = post(f"{gateway.url}/v1/completions", LONG)
        assert (refused[0], error_of(refused)["code"]) == (503, "draining")
        assert refused[2]["connection"] == "close"
        ends = [stream.rest() for stream in running] + [stream.begin().rest() for stream in waiting]
        assert all(events[-1] == {"done": True} for events in ends)
        assert gateway.process.wait(30) == 0
        assert gateway.lines()[-1] | {"time": "", "seconds": 0} == {
            "time": "", "level": "info", "message": "drained", "finished": 10, "cut": 0, "seconds": 0,
        }  # fmt: skip
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", gateway.port))


def test_new_requests_are_still_taken_while_a_cluster_sends_them(
    source_tree: Path, source_server: TritonServer, start_gateway: StartGateway
) -> None:
    with start_gateway(source_tree, source_server, "--accept-seconds", "20", "--drain-seconds", "60") as gateway:
        gateway.process.send_signal(signal.SIGTERM)
        gateway.wait(lambda: gateway.ready() == 503, "not ready")

        status, _, headers = post(f"{gateway.url}/v1/completions", LONG | {"stream": False, "max_tokens": 2})

        assert (status, headers["connection"]) == (200, "close")
        # A second signal ends the waiting.
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(30) == 0


def test_an_answer_that_outlasts_the_drain_ends_with_an_error_and_the_exit_code_says_so(
    source_tree: Path, source_server: TritonServer, start_gateway: StartGateway
) -> None:
    with start_gateway(source_tree, source_server, "--drain-seconds", "3") as gateway:
        stream = Stream(gateway, LONG).begin()  # 4.5 s
        gateway.process.send_signal(signal.SIGTERM)

        events = stream.rest()

        assert events[-1]["error"]["code"] == "draining"
        assert gateway.process.wait(30) == 4
        assert "1 answer(s) did not end within 3 s and were cut" in gateway.log.read_text()


def test_ctrl_c_ends_it_with_the_exit_code_of_an_interruption(
    source_tree: Path, source_server: TritonServer, start_gateway: StartGateway
) -> None:
    with start_gateway(source_tree, source_server, "--accept-seconds", "20") as gateway:
        gateway.process.send_signal(signal.SIGINT)

        assert gateway.process.wait(30) == 130
        assert json.loads(gateway.log.read_text().splitlines()[-1])["message"] == "drained"
