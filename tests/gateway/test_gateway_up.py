"""`up --local --serve` as a user runs it."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gateway_process import post

pytestmark = pytest.mark.local


def test_up_goes_on_serving_until_it_is_told_to_stop(checkout: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [
        sys.executable, "-m", "engineroom", "up", "--local", "--serve", "--port", "0", "--metrics-port", "0",
        "--recipe", str(checkout / "examples" / "smollm2.yaml"), "--work", str(tmp_path / "work"), "--output", "json",
    ]  # fmt: skip
    with log.open("wb") as words, (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(command, stderr=words, stdout=out)
    try:
        until = time.monotonic() + 200
        while not (found := re.search(r"^ready: (http://127\.0\.0\.1:\d+)/v1", log.read_text(), re.MULTILINE)):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        assert f"curl -N {found[1]}/v1/chat/completions" in log.read_text()
        assert "Paris" in json.loads((tmp_path / "out").read_text())["answer"]
        body = {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 3, "temperature": 0}
        assert "Paris" in post(f"{found[1]}/v1/completions", body)[1]

        process.send_signal(signal.SIGTERM)

        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--serve"], "give --local too"),
        (["--local", "--serve", "--port", "1"], None),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_done(
    checkout: Path, tmp_path: Path, options: list[str], words: str | None
) -> None:
    command = [
        sys.executable, "-m", "engineroom", "up", *options,
        "--recipe", str(checkout / "examples" / "smollm2.yaml"), "--work", str(tmp_path / "work"),
    ]  # fmt: skip
    if words is None:
        import socket

        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            command[command.index("1")] = str(taken.getsockname()[1])
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        words = "choose another with --port"
    else:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode in (2, 4)
    assert words in done.stderr
    assert not (tmp_path / "work").exists()
