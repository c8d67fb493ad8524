"""docs/triton.md: it names every tensor that clients see, and what it shows works."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from one_model_client import events

from engineroom.repository.tensors import Interface, tensors
from engineroom.serving.server import TritonServer

CLIENTS: list[Interface] = ["client", "client_pytorch", "client_tensorrt"]


def page(checkout: Path) -> str:
    return (checkout / "docs" / "triton.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("section", "kind"), [("Inputs", "inputs"), ("Outputs", "outputs")])
def test_it_names_every_tensor_with_its_type_and_no_other(checkout: Path, section: str, kind: str) -> None:
    (text,) = re.findall(rf"^## {section}\n(.*?)^(?:## |\Z)", page(checkout), re.DOTALL | re.MULTILINE)
    shown: dict[str, str] = {}
    for names, types in re.findall(r"^\| (`.*?) \| (.*?) \|", text, re.MULTILINE):
        found = re.findall(r"`(\w+)`", names)
        words = re.findall(r"[A-Z]+[0-9]*", types)
        shown |= dict(zip(found, words * len(found) if len(words) == 1 else words, strict=False))

    declared = {tensor.name: tensor.datatype for client in CLIENTS for tensor in getattr(tensors(client), kind)}
    assert shown == declared


@pytest.mark.local
def test_its_commands_are_answered(checkout: Path, demo: TritonServer) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    commands = re.findall(r"^```bash\n(.*?)^```", page(checkout), re.DOTALL | re.MULTILINE)
    assert len(commands) == 2
    whole, streamed = (
        subprocess.run(
            ["bash", "-c", command.replace(":8000", f":{demo.ports.http}")],
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for command in commands
    )

    assert json.loads(whole)["text_output"] == " Paris.\n"
    assert "".join(event["text_output"] for event in events(streamed)) == " Paris.\n"
