"""`helm test`: the script that its pod runs passes over a server that answers, and names what does not."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rendered import one

Render = Callable[..., list[dict[str, Any]]]

#: What a served release answers at the paths that the test asks for.
ANSWERS = {
    "/v2/models/tensorrt_llm_bls/generate": json.dumps({"model_name": "tensorrt_llm_bls", "text_output": "!"}),
    "/v1/models": json.dumps({"data": [{"id": "llama"}]}),
    "/v1/completions": json.dumps({"choices": [{"text": "!"}]}),
    "/metrics": 'nv_inference_request_success{model="m"} 1\nengineroom_gateway_requests_running 0\n',
}


class Server:
    """Answers from a table; everything else is 404."""

    def __init__(self) -> None:
        self.answers = dict(ANSWERS)
        self.keys: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.keys.append(self.headers.get("Authorization"))
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                text = outer.answers.get(self.path)
                self.send_response(404 if text is None else 200)
                self.end_headers()
                self.wfile.write((text or "nothing here").encode())

            do_POST = do_GET  # noqa: N815  (the name is the library's)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


def run(items: list[dict[str, Any]], address: str, keys: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The pod's command, against one server for all addresses."""
    pod = one(items, "Pod", "-test")
    [container] = pod["spec"]["containers"]
    python, option, script, *words = [*container["command"], *container["args"]]
    assert python == "python3"
    words = [
        f"{flag}={address}" if "svc:" in value else f"{flag}={keys or value}" if flag == "--keys" else f"{flag}={value}"
        for flag, _, value in (word.partition("=") for word in words)
    ]
    command = [sys.executable, option, script, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_it_asks_for_a_token_both_ways_and_looks_at_the_metrics(render: Render, server: Server) -> None:
    done = run(render("h100"), server.address)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "one token from tensorrt_llm_bls through Triton",
        f"metrics: nv_inference_request_success at {server.address}",
        "one token from llama through the OpenAI API",
        f"metrics: engineroom_gateway_ at {server.address}",
    ]


def test_it_uses_a_key_where_the_gateway_wants_one(render: Render, server: Server, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("\nfirst-key\nsecond-key\n", encoding="utf-8")
    server.answers["/v2/models/chat/generate"] = server.answers["/v2/models/tensorrt_llm_bls/generate"]

    assert run(render("every-value-values"), server.address, keys).returncode == 0
    assert "Bearer first-key" in server.keys


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        ("/v2/models/tensorrt_llm_bls/generate", None, "answered 404"),
        ("/v2/models/tensorrt_llm_bls/generate", "{}", "answered no token"),
        ("/v2/models/tensorrt_llm_bls/generate", "<html>", "answered no JSON object"),
        ("/v1/models", '{"data": []}', "names no model"),
        ("/v1/completions", '{"choices": []}', "answered no token"),
        ("/metrics", "go_goroutines 1\n", "has no metric nv_inference_request_success"),
    ],
)
def test_it_fails_and_says_what_does_not_answer(
    path: str, answer: str | None, words: str, render: Render, server: Server
) -> None:
    server.answers.pop(path)
    if answer is not None:
        server.answers[path] = answer

    done = run(render("h100"), server.address)

    assert done.returncode == 1
    assert path in done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_it_fails_where_nobody_listens(render: Render) -> None:
    done = run(render("h100"), "127.0.0.1:1")

    assert done.returncode == 1
    assert "does not answer" in done.stderr


def test_it_is_a_hook_that_leaves_a_failed_pod_for_its_log(render: Render) -> None:
    annotations = one(render("h100"), "Pod", "-test")["metadata"]["annotations"]

    assert annotations["helm.sh/hook"] == "test"
    assert "hook-failed" not in annotations["helm.sh/hook-delete-policy"]
