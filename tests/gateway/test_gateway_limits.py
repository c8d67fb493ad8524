"""Queue, keys, sizes and times, at a gateway that is told small ones."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gateway_process import GatewayProcess, error_of, get, post
from gateway_stream import LONG, Stream

from conftest import StartGateway
from engineroom.serving.server import TritonServer

pytestmark = pytest.mark.local


@pytest.fixture(scope="module")
def narrow(
    source_tree: Path,
    source_server: TritonServer,
    start_gateway: StartGateway,
) -> Iterator[GatewayProcess]:
    """One slot, two places in the queue, for bodies up to 10 kB."""
    options = ["--slots", "1", "--max-queued-requests", "2", "--max-queued-tokens", "100", "--max-body-bytes", "10000"]
    with start_gateway(source_tree, source_server, *options, "--send-seconds", "1") as started:
        yield started


def test_only_slots_are_forwarded_others_wait_and_too_many_are_told_when_to_come_again(narrow: GatewayProcess) -> None:
    first = Stream(narrow, LONG).begin()
    waiting = [Stream(narrow, LONG | {"max_tokens": 5}) for _ in range(2)]
    narrow.wait(lambda: narrow.metrics()["requests_waiting"] == 2, "two wait")
    assert narrow.metrics()["requests_running"] == 1
    assert narrow.metrics()["queued_prompt_tokens"] == 8

    status, body, headers = post(f"{narrow.url}/v1/completions", LONG)

    assert (status, error_of((status, body, headers))["type"]) == (429, "rate_limit_error")
    assert 1 <= int(headers["retry-after"]) <= 120
    first.close()  # its slot is free as soon as it is gone
    for stream in waiting:
        assert stream.begin().rest()[-1] == {"done": True}
    narrow.wait(lambda: narrow.metrics()["requests_running"] == 0, "nothing runs")


def test_prompts_that_wait_are_bounded_in_tokens(narrow: GatewayProcess) -> None:
    first = Stream(narrow, LONG).begin()
    long = Stream(narrow, LONG | {"prompt": "word " * 99, "max_tokens": 1})
    narrow.wait(lambda: narrow.metrics()["requests_waiting"] == 1, "one waits")

    refused = post(f"{narrow.url}/v1/completions", LONG | {"prompt": "word " * 20})

    assert "tokens wait already" in error_of(refused)["message"]
    first.close()
    long.begin().rest()


def test_a_client_that_leaves_the_queue_frees_its_place(narrow: GatewayProcess) -> None:
    first = Stream(narrow, LONG).begin()
    second = Stream(narrow, LONG)
    narrow.wait(lambda: narrow.metrics()["requests_waiting"] == 1, "one waits")

    second.close()

    narrow.wait(lambda: narrow.metrics()["requests_waiting"] == 0, "none waits")
    first.close()
    narrow.wait(lambda: narrow.metrics()["requests_running"] == 0, "nothing runs")


def test_a_client_that_does_not_read_is_cut_off_but_its_slot_is_free_when_the_engine_is_done(
    source_tree: Path, source_server: TritonServer, start_gateway: StartGateway
) -> None:
    with start_gateway(source_tree, source_server, "--send-seconds", "1") as gateway:
        slow = socket.create_connection(("127.0.0.1", gateway.port))
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        # Large chunks: with an emoji a token, 900 of them are more than the buffers between.
        body = json.dumps(LONG | {"prompt": "👍 " * 5, "n": 4}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        slow.sendall(head.encode() + body)

        gateway.wait(lambda: gateway.metrics()["requests_running"] > 0, "it runs")
        gateway.wait(lambda: gateway.metrics()["requests_running"] == 0, "the engine is done, or told to stop")
        gateway.wait(lambda: bool(gateway.requests()), "it is over", 60)
        assert gateway.requests()[-1]["status"] in (200, 499)
        slow.close()


def test_a_body_that_is_too_large_is_refused_after_it_was_read(narrow: GatewayProcess) -> None:
    large = LONG | {"prompt": "x" * 10_000}
    refused = post(f"{narrow.url}/v1/completions", large)

    assert refused[0] == 413
    assert error_of(refused)["message"] == "the body is larger than 10,000 bytes"
    assert post(f"{narrow.url}/v1/completions", LONG | {"stream": False, "max_tokens": 1})[0] == 200


def test_a_body_that_says_it_is_huge_is_refused_at_once(narrow: GatewayProcess) -> None:
    with socket.create_connection(("127.0.0.1", narrow.port), timeout=10) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_prompt_that_is_too_long_is_refused_however_long_it_is(source: GatewayProcess) -> None:
    for prompt, said in (("word " * 600, "601 tokens"), ("x" * 3_000_000, "at least ")):
        error = error_of(post(f"{source.url}/v1/completions", {"model": "smollm2", "prompt": prompt}))
        assert error["code"] == "context_length_exceeded"
        assert error["param"] == "prompt"
        assert said in error["message"]
        assert "at most 512" in error["message"]
    assert post(f"{source.url}/v1/completions", {"model": "smollm2", "prompt": "word " * 500})[0] == 200


def raw(gateway: GatewayProcess, data: bytes) -> bytes:
    """What comes back for these bytes, until the connection ends."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as client:
        client.sendall(data)
        return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"y" * 40_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Endless: " + b"y" * 60_000, 431),
        (b"GET /" + b"y" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"NOT HTTP\r\n\r\n", 400),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
    ],
)
def test_heads_that_are_no_http_or_too_large_are_refused(source: GatewayProcess, data: bytes, status: int) -> None:
    answer = raw(source, data)

    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_a_large_head_that_is_still_allowed_is_read(source: GatewayProcess) -> None:
    assert get(f"{source.url}/health/live", **{"X-Long": "y" * 20_000})[0] == 200


def test_an_answer_has_a_deadline_of_the_server_or_a_shorter_one_of_the_client(source: GatewayProcess) -> None:
    asked = {"X-Request-Timeout": "0.3"}
    whole = post(f"{source.url}/v1/completions", LONG | {"stream": False}, **asked)
    assert (whole[0], error_of(whole)["code"]) == (504, "deadline_exceeded")

    status, events, _ = post(f"{source.url}/v1/completions", LONG, **asked)
    assert status == 200
    last = events.split("\n\n")[-2]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    assert "[DONE]" not in events
    for bad in ("0", "-1", "nan", "inf", "soon"):
        assert post(f"{source.url}/v1/completions", LONG, **{"X-Request-Timeout": bad})[0] == 400


def test_a_client_that_goes_away_is_cancelled_in_triton(source: GatewayProcess, source_server: TritonServer) -> None:
    def running() -> float:
        _, text, _ = get(f"http://127.0.0.1:{source_server.ports.metrics}/metrics")
        (line,) = [line for line in text.splitlines() if line.startswith("engineroom_requests_running{")]
        return float(line.rsplit(" ", 1)[1])

    streams = [Stream(source, LONG | {"n": 2}).begin() for _ in range(2)]
    source.wait(lambda: running() == 4, "all run")
    before = source.metrics()["abandoned_total"]

    for stream in streams:
        stream.close()

    source.wait(lambda: running() == 0, "none runs", 3)  # 900 tokens would take 4.5 s
    source.wait(lambda: source.metrics()["abandoned_total"] == before + 2, "counted")


def test_keys_guard_the_api_and_not_the_health_of_it(
    source_tree: Path, source_server: TritonServer, start_gateway: StartGateway, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first\n")
    with start_gateway(source_tree, source_server, "--api-keys-file", str(keys)) as gateway:
        url = f"{gateway.url}/v1/models"
        assert get(f"{gateway.url}/health/live")[0] == 200
        refused = get(url)
        assert (refused[0], refused[2]["www-authenticate"]) == (401, "Bearer")
        assert error_of(refused)["code"] == "invalid_api_key"
        assert get(url, Authorization="Bearer first")[0] == 200
        keys.write_text("second\n")
        gateway.wait(lambda: get(url, Authorization="Bearer second")[0] == 200, "the new key is good")
        assert get(url, Authorization="Bearer first")[0] == 401
        assert gateway.metrics()['rejected_total{reason="unauthorized"}'] >= 2


def test_a_wrong_name_path_or_method_is_answered_in_the_form_of_the_api(source: GatewayProcess) -> None:
    wrong = post(f"{source.url}/v1/completions", LONG | {"model": "gpt-4o"})
    assert (wrong[0], error_of(wrong)["param"]) == (404, "model")
    assert "'gpt-4o' is not here; this server has 'smollm2'" in error_of(wrong)["message"]
    assert error_of(get(f"{source.url}/v1/files"))["code"] == "unknown_url"
    method = get(f"{source.url}/v1/completions")
    assert (method[0], method[2]["allow"]) == (405, "POST")
    error_of(method)


def test_requests_side_by_side_are_all_answered(source: GatewayProcess) -> None:
    def ask(number: int) -> str:
        answer = post(f"{source.url}/v1/completions", {"model": "smollm2", "prompt": f"number {number}"})
        return str(json.loads(answer[1])["choices"][0]["text"])

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(ask, range(20))) == [f"number {number}" for number in range(20)]
