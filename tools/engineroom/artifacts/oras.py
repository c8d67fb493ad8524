"""Artifacts of others: files and folders that `oras push` stored as layers, each named by its title.

No build record describes them, so each layer is compared with its own digest, and is one piece however long it is.
A tree of ours that was pushed file by file brings its build record as one of the layers.
https://oras.land/docs/concepts/artifact, https://github.com/opencontainers/image-spec/blob/v1.1.1/annotations.md
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from engineroom.artifacts.manifest import TITLE, Descriptor, Part, StoredFile, folders_of, path_problem
from engineroom.documents import FileRecord
from engineroom.errors import ArtifactCorruptError
from engineroom.repository.record import FILE as RECORD_FILE

#: https://github.com/oras-project/oras-go, content/file: a folder, packed; its layer is to be unpacked.
UNPACK = "io.deis.oras.content.unpack"
#: Of the tar in it, before it was compressed.
TAR_DIGEST = "io.deis.oras.content.digest"


@dataclass(frozen=True)
class Packed:
    """A folder that is one layer: a tar, compressed by gzip."""

    title: str
    """Where it goes; ``.`` is the folder of the pull itself."""
    hex: str
    size: int
    tar_hex: str
    """SHA-256 (hexadecimal) of the tar; empty where the layer does not say."""


@dataclass(frozen=True)
class Layers:
    """What a manifest of others names."""

    record: Descriptor | None
    """The build record's layer, where there is one."""
    files: list[StoredFile]
    """The other files, in order of path."""
    packed: list[Packed]
    """Folders, in order of the layers."""


def plain_blobs(data: bytes, *, where: str) -> list[Descriptor]:
    """Every blob that a manifest names, whatever it is: its layers, then its config, each with its title.

    Raises :class:`ArtifactCorruptError` where it is no manifest of one artifact, or names a blob by another hash.
    """
    named = [*_layers(data, where), json.loads(data).get("config")]
    found = []
    for number, value in enumerate(named, start=1):
        what = f"layer {number}" if number < len(named) else "config"
        try:
            title = (value.get("annotations") or {}).get(TITLE)
            title = title if isinstance(title, str) and title.isprintable() else f"its {what}"
            blob = Descriptor(mediaType="blob", digest=value["digest"], size=value["size"], annotations={TITLE: title})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ArtifactCorruptError(f"its {what} has no SHA-256 digest and size", where=where) from None
        found.append(blob)
    return found


def _layers(data: bytes, where: str) -> list[Any]:
    try:
        value = json.loads(data)
        layers = value["layers"]
        if isinstance(layers, list) and all(isinstance(one, dict) for one in layers):
            return layers
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ArtifactCorruptError(
        "it is no manifest of one artifact", where=where, fix="name one that `engineroom publish` or `oras push` made"
    )


def plain_layers(data: bytes, *, where: str) -> Layers:
    """The layers of a manifest.

    Raises :class:`ArtifactCorruptError` where it is no manifest, has no files, or files that cannot be a tree.
    """
    found = [(layer.get("annotations") or {}, layer) for layer in _layers(data, where)]
    kind = json.loads(data).get("mediaType", "")
    record: Descriptor | None = None
    files: dict[str, StoredFile] = {}
    packed: list[Packed] = []
    for annotations, layer in found:
        title = annotations.get(TITLE)
        if not isinstance(title, str):
            raise ArtifactCorruptError(
                f"a layer of {kind or 'its manifest'} has no title: this is an image or a chart, and no set of files",
                where=where,
            )
        try:
            blob = Descriptor(mediaType="layer", digest=layer["digest"], size=layer["size"])
        except (ValueError, KeyError):
            raise ArtifactCorruptError(f"the layer of {title} has no SHA-256 digest and size", where=where) from None
        if annotations.get(UNPACK) == "true":
            packed.append(_packed(title, blob, annotations.get(TAR_DIGEST, ""), where=where))
            continue
        if title == RECORD_FILE and record is None:
            record = blob
            continue
        if problem := path_problem(title):
            raise ArtifactCorruptError(f"the path {title!r} {problem}", where=where)
        if title in files:
            raise ArtifactCorruptError(f"{title} is there twice", where=where)
        files[title] = StoredFile(
            FileRecord(path=title, size=blob.size, sha256=blob.hex), (Part(blob.hex, 0, blob.size),)
        )
    if both := sorted(folders_of(files) & files.keys()):
        raise ArtifactCorruptError(f"{both[0]} is a file and a folder", where=where)
    if both := sorted({layer.title for layer in packed} & files.keys()):
        raise ArtifactCorruptError(f"{both[0]} is a file and a packed folder", where=where)
    if not files and not packed:
        raise ArtifactCorruptError("it holds no files", where=where)
    return Layers(record, [files[title] for title in sorted(files)], packed)


def _packed(title: str, blob: Descriptor, digest: object, *, where: str) -> Packed:
    if title != "." and (problem := path_problem(title)):
        raise ArtifactCorruptError(f"the path {title!r} {problem}", where=where)
    if digest and not (isinstance(digest, str) and re.fullmatch(r"sha256:[0-9a-f]{64}", digest)):
        raise ArtifactCorruptError(f"the tar of {title} has {digest!r} for its SHA-256 digest", where=where)
    return Packed(title, blob.hex, blob.size, str(digest).removeprefix("sha256:"))
