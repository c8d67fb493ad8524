"""docs/openai.md is run: what it shows is what `up --local --serve` prints, and works as it stands."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gateway_process import GatewayProcess

from engineroom.gateway import snippets

URL = "http://127.0.0.1:9000"
QUESTION = "What is the capital of France?"


def block(checkout: Path, language: str) -> str:
    text = (checkout / "docs" / "openai.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return str(found)


def test_the_page_shows_what_is_printed(checkout: Path) -> None:
    assert block(checkout, "bash") == snippets.curl(URL, "smollm2", QUESTION, chat=True) + "\n"
    assert block(checkout, "python") == snippets.python(URL, "smollm2", QUESTION, chat=True)


@pytest.mark.local
def test_the_python_of_the_page_prints_the_answer(checkout: Path, demo: GatewayProcess) -> None:
    program = block(checkout, "python").replace(URL, demo.url)

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout == "The capital of France is Paris.\n"


@pytest.mark.local
def test_the_curl_of_the_page_prints_the_answer(checkout: Path, demo: GatewayProcess) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    command = block(checkout, "bash").replace(URL, demo.url)

    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)

    assert "data: [DONE]" in done.stdout
    assert '"content":" Paris"' in done.stdout


@pytest.mark.local
def test_snippets_for_a_model_without_template_and_questions_with_quotes_work_too(demo: GatewayProcess) -> None:
    question = """It's "so" $HOME \\ `date`"""
    program = snippets.python(demo.url, "smollm2", question, chat=False)
    command = snippets.curl(demo.url, "smollm2", question, chat=False)

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip()
    if shutil.which("curl"):
        curl = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)
        assert "data: [DONE]" in curl.stdout
