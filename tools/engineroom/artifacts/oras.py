"""Artifacts of others: files that `oras push` stored as layers, each named by its title.

No build record describes them, so each layer is compared with its own digest, and is one piece however long it is.
A tree of ours that was pushed file by file brings its build record as one of the layers.
https://oras.land/docs/concepts/artifact, https://github.com/opencontainers/image-spec/blob/v1.1.1/annotations.md
"""

import json
from typing import Any

from engineroom.artifacts.manifest import TITLE, Descriptor, Part, StoredFile, folders_of, path_problem
from engineroom.documents import FileRecord
from engineroom.errors import ArtifactCorruptError
from engineroom.repository.record import FILE as RECORD_FILE

#: https://github.com/oras-project/oras-go, content/file: a folder, packed; its layer is to be unpacked.
UNPACK = "io.deis.oras.content.unpack"


def plain_layers(data: bytes, *, where: str) -> tuple[Descriptor | None, list[StoredFile]]:
    """The build record's layer, if there is one, and the other files of a manifest, in order of path.

    Raises :class:`ArtifactCorruptError` where it is no manifest, has no files, or files that cannot be a tree.
    """
    try:
        value = json.loads(data)
        layers: list[Any] = value["layers"]
        found = [(layer.get("annotations") or {}, layer) for layer in layers]
        kind = value.get("mediaType", "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ArtifactCorruptError(
            "it is no manifest of one artifact",
            where=where,
            fix="name one that `engineroom publish` or `oras push` made",
        ) from None
    record: Descriptor | None = None
    files: dict[str, StoredFile] = {}
    for annotations, layer in found:
        title = annotations.get(TITLE)
        if not isinstance(title, str):
            raise ArtifactCorruptError(
                f"a layer of {kind or 'its manifest'} has no title, so this is an image and no set of files",
                where=where,
            )
        if annotations.get(UNPACK) == "true":
            raise ArtifactCorruptError(
                f"{title} is a packed folder", where=where, fix="push its files one by one, with their paths"
            )
        try:
            blob = Descriptor(mediaType="layer", digest=layer["digest"], size=layer["size"])
        except (ValueError, KeyError):
            raise ArtifactCorruptError(f"the layer of {title} has no SHA-256 digest and size", where=where) from None
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
    if not files:
        raise ArtifactCorruptError("it holds no files", where=where)
    return record, [files[title] for title in sorted(files)]
