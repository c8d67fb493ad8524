"""What `oras push` makes: folders packed as one layer, and manifests without a build record as config.

https://github.com/oras-project/oras-go, content/file: one tar of all that is below the folder, named with the folder's
title, compressed by gzip; the digest of the tar is an annotation.
"""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engineroom.artifacts.reference import Reference
from engineroom.artifacts.store import Pointer
from engineroom.artifacts.stores import open_store

TITLE = "org.opencontainers.image.title"
Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> Member:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.size, found.mode = kind, link, len(data), mode
    return found, data


def folder(name: str) -> Member:
    return member(name, kind=tarfile.DIRTYPE, mode=0o755)


def members_of(tree: Path, title: str) -> list[Member]:
    """As oras walks a folder: in order of the names, the folder itself first."""
    found = [folder(title)]
    for path in sorted(tree.rglob("*")):
        name = path.relative_to(tree).as_posix() if title == "." else f"{title}/{path.relative_to(tree).as_posix()}"
        mode = path.stat().st_mode & 0o777
        found.append(folder(name) if path.is_dir() else member(name, path.read_bytes(), mode=mode))
    return found


def make_tar(members: Iterable[Member], *, form: int = tarfile.PAX_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


def packed(title: str, tar: bytes, *, data: bytes | None = None, digest: str | None = "") -> tuple[bytes, Any]:
    """A layer's bytes and its annotations; `digest` replaces the right one, None leaves it away."""
    notes = {TITLE: title, "io.deis.oras.content.unpack": "true"}
    if digest is not None:
        notes["io.deis.oras.content.digest"] = digest or f"sha256:{hashlib.sha256(tar).hexdigest()}"
    return gzip.compress(tar, 1, mtime=0) if data is None else data, notes


def push(reference: Reference, *layers: tuple[bytes, Any]) -> Pointer:
    """Store layers as `oras push` does, and tag them."""
    store = open_store(reference).within(reference.name)
    described = []
    for data, notes in [(b"{}", None), *layers]:
        blob = hashlib.sha256(data).hexdigest()
        store.write_blob(blob, len(data), [memoryview(data)])
        kind = "application/vnd.oci.image.layer.v1.tar+gzip" if notes else "application/vnd.oci.empty.v1+json"
        described.append({"mediaType": kind, "digest": f"sha256:{blob}", "size": len(data)})
        described[-1] |= {"annotations": notes} if notes else {}
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": "application/vnd.unknown.artifact.v1",
            "config": described[0],
            "layers": described[1:],
            "annotations": {"org.opencontainers.image.created": "2026-11-27T00:00:00Z"},
        }
    ).encode()
    pointer = Pointer.to(manifest)
    store.write_manifest(pointer.digest.removeprefix("sha256:"), manifest)
    assert reference.tag
    store.write_tag(reference.name, reference.tag, pointer)
    return pointer
