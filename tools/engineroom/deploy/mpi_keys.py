"""The Secret with which the leader of a LeaderWorkerSet starts ranks on the other nodes, over ssh.

Two key pairs, made here and kept nowhere but in the Secret: one says who may start ranks, the other who a node is. The
nodes' names come and go, so they are all known under one alias. The chart's ``templates/triton/_group.tpl`` uses them.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import yaml

from engineroom.errors import CommandError, InputError

#: How ssh names every node of a group (HostKeyAlias).
ALIAS = "engineroom"

HOW_TO_GET = "install OpenSSH's client (apt-get install openssh-client)"


def make_secret(name: str, *, namespace: str | None = None) -> str:
    """The manifest (YAML) of a new Secret with the keys ``id``, ``authorized_keys``, ``host_key``, ``known_hosts``.

    Raises InputError where Kubernetes takes no such name, CommandError where ssh-keygen does not do its work.
    """
    _check_name(name, "NAME")
    if namespace is not None:
        _check_name(namespace, "--namespace")
    with tempfile.TemporaryDirectory() as folder:
        client, client_public = _key_pair(Path(folder) / "id")
        host, host_public = _key_pair(Path(folder) / "host")
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, **({"namespace": namespace} if namespace else {})},
        "type": "Opaque",
        "stringData": {
            "id": client,
            "authorized_keys": client_public,
            "host_key": host,
            "known_hosts": f"{ALIAS} {host_public}",
        },
    }
    text: str = yaml.dump(secret, Dumper=_Blocks, sort_keys=False)
    return text


class _Blocks(yaml.SafeDumper):
    """Keys as blocks of lines, as people know them."""


_Blocks.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _check_name(name: str, where: str) -> None:
    if len(name) > 253 or not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", name):
        raise InputError(
            f"{name[:120]!r} is no name of a Kubernetes object",
            where=where,
            fix="use small letters, digits and dashes, such as llm-mpi",
        )


def _key_pair(path: Path) -> tuple[str, str]:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", ALIAS, "-f", str(path)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode != 0:
            raise CommandError(
                f"it made no key (exit code {done.returncode})",
                where="ssh-keygen",
                tail=tuple(done.stderr.splitlines()[-20:]),
            )
        return path.read_text(encoding="utf-8"), path.with_suffix(".pub").read_text(encoding="utf-8")
    except subprocess.TimeoutExpired:
        raise CommandError("it gave no answer in 60 s", where="ssh-keygen") from None
    except OSError as error:
        raise CommandError(f"cannot run it ({error.strerror})", where="ssh-keygen", fix=HOW_TO_GET) from None
