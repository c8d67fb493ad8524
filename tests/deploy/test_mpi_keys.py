"""The keys of an engine over several nodes belong together, and ssh takes them."""

import subprocess
from pathlib import Path

import pytest
import yaml

from engineroom.deploy.mpi_keys import make_secret
from engineroom.errors import CommandError, InputError


def public_of(private: str, folder: Path) -> str:
    """What ssh itself says of a private key."""
    path = folder / "key"
    path.write_text(private, encoding="utf-8")
    path.chmod(0o600)
    done = subprocess.run(["ssh-keygen", "-y", "-f", str(path)], capture_output=True, text=True, check=True, timeout=60)
    return " ".join(done.stdout.split()[:2])


def test_the_private_keys_fit_what_the_nodes_are_told_of_them(tmp_path: Path) -> None:
    secret = yaml.safe_load(make_secret("llm-mpi", namespace="models"))
    keys = secret["stringData"]

    assert (secret["kind"], secret["metadata"]) == ("Secret", {"name": "llm-mpi", "namespace": "models"})
    assert keys["authorized_keys"].startswith(public_of(keys["id"], tmp_path))
    assert keys["known_hosts"].startswith("engineroom " + public_of(keys["host_key"], tmp_path))
    assert keys["id"] != keys["host_key"]


def test_every_call_makes_new_keys() -> None:
    first, second = (yaml.safe_load(make_secret("a"))["stringData"] for _ in range(2))

    assert not set(first.values()) & set(second.values())
    assert "namespace" not in yaml.safe_load(make_secret("a"))["metadata"]


@pytest.mark.parametrize("name", ["", "A", "-a", "a_b", "a\n", "a" * 254])
def test_a_name_that_kubernetes_does_not_take_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="no name of a Kubernetes object"):
        make_secret(name)
    make_secret("a" * 253)


def test_a_machine_without_ssh_keygen_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(CommandError) as refusal:
        make_secret("llm-mpi")
    assert "openssh-client" in refusal.value.fix
