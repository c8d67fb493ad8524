"""The manifest: an OCI image manifest with one layer per file, which names everything that an artifact is.

The digest of its bytes is the artifact's digest, so the bytes are made in one way only (RFC 8785, layers in order
of path, parts in order). A reader trusts nothing in it: :func:`contents` compares it with the build record.
https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints, ValidationError

from engineroom import documents
from engineroom.documents import FileRecord, Strict, canonical, first_problem
from engineroom.errors import ArtifactCorruptError
from engineroom.repository.record import FILE as RECORD_FILE
from engineroom.repository.record import MEDIA_TYPE as RECORD_TYPE
from engineroom.repository.record import BuildRecord

MEDIA_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE: Final = "application/vnd.engineroom.artifact.v1"
LAYER_TYPE = "application/octet-stream"
TITLE = "org.opencontainers.image.title"
PART = "dev.engineroom.part"

#: Longest manifest: registries need not take longer ones.
MAX_BYTES = 4 * 1024 * 1024
#: Longest build record: 65 bytes for each 64 MiB of the model; 32 MiB describe 30 TB.
MAX_RECORD_BYTES = 32 * 1024 * 1024
#: Longest layer, a whole number of chunks: registries cap the size of a layer. Part of the format: a change of it
#: changes the digests of artifacts with longer files.
PART_BYTES = 4 * 1024 * 1024 * 1024

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class Descriptor(Strict):
    """One blob: what it is, what it hashes to and how long it is."""

    media_type: str = Field(alias="mediaType", min_length=1, max_length=255)
    digest: Digest
    size: int = Field(ge=0, lt=1 << 63)
    annotations: dict[str, str] = Field(default_factory=dict)

    @property
    def hex(self) -> str:
        """The digest without its algorithm: the blob's name in a store."""
        return self.digest.removeprefix("sha256:")


class Manifest(Strict):
    """An OCI image manifest as this project writes it; other keys are refused."""

    schema_version: Literal[2] = Field(default=2, alias="schemaVersion")
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"] = Field(default=MEDIA_TYPE, alias="mediaType")
    artifact_type: Literal["application/vnd.engineroom.artifact.v1"] = Field(
        default=ARTIFACT_TYPE, alias="artifactType"
    )
    config: Descriptor
    layers: list[Descriptor] = Field(min_length=1)
    annotations: dict[str, str] = Field(default_factory=dict)
    """We write none; `oras push` and `oras copy` add the time."""

    def to_json(self) -> bytes:
        """The one spelling of this manifest."""
        value = self.model_dump(mode="json", by_alias=True)
        for annotated in [value, value["config"], *value["layers"]]:
            if not annotated["annotations"]:
                del annotated["annotations"]
        return canonical(value)

    @property
    def digest(self) -> str:
        """The artifact's digest, ``sha256:…``."""
        return "sha256:" + hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def parse(cls, data: bytes, *, where: str) -> "Manifest":
        """Read a manifest. Raises :class:`ArtifactCorruptError` where it is no artifact of ours."""
        if len(data) > MAX_BYTES:
            raise ArtifactCorruptError(
                f"{len(data)} bytes are too long for a manifest", where=where, fix=f"at most {MAX_BYTES} are allowed"
            )
        try:
            manifest = cls.model_validate_json(data)
        except ValidationError as error:
            path, found = first_problem(error)
            raise ArtifactCorruptError(
                f"it is no manifest of engineroom: {path + ': ' if path else ''}{found}",
                where=where,
                fix="check the reference: is this artifact one that `engineroom publish` made?",
            ) from None
        if manifest.config.media_type != RECORD_TYPE:
            raise ArtifactCorruptError(f"its config is {manifest.config.media_type!r}, not {RECORD_TYPE}", where=where)
        return manifest


@dataclass(frozen=True)
class Part:
    """A run of a file's bytes that is one blob."""

    hex: str
    """SHA-256: the blob's name."""
    offset: int
    """In the file."""
    size: int


@dataclass(frozen=True)
class Chunk:
    """A run of a file's bytes that has a digest of its own in the build record."""

    number: int
    """From 0."""
    start: int
    """In the file."""
    size: int
    sha256: str


@dataclass(frozen=True)
class StoredFile:
    """A file of an artifact, and the blobs that hold it."""

    record: FileRecord
    parts: tuple[Part, ...]

    def chunks(self) -> list[Chunk]:
        """Every chunk of the file."""
        return chunks_of(self.record)

    def part_at(self, offset: int) -> Part:
        """The part that holds the byte at ``offset``; chunks never straddle parts."""
        return next(part for part in reversed(self.parts) if part.offset <= offset)


def chunks_of(file: FileRecord) -> list[Chunk]:
    """Every chunk of a file, in order; an empty file has one, of size 0, as has one whose record names no chunks."""
    if not file.chunks:
        return [Chunk(0, 0, file.size, file.sha256)]
    step = documents.CHUNK_BYTES
    return [
        Chunk(number, number * step, min(step, file.size - number * step), sha256)
        for number, sha256 in enumerate(file.chunks)
    ]


def part_spans(size: int) -> list[tuple[int, int]]:
    """``(offset, size)`` of the layers that a file of ``size`` bytes becomes."""
    return [(start, min(PART_BYTES, size - start)) for start in range(0, max(size, 1), PART_BYTES)]


def part_suffix(number: int, parts: int) -> str:
    """What the title of a part has after the path of its file.

    `oras pull` refuses two layers of one title, so it lays parts down beside each other; ``cat model.bin.part-*`` in
    the order of their names is the file.
    """
    return f".part-{number:0{len(str(parts))}d}-of-{parts}"


def make_manifest(record: bytes, files: Sequence[StoredFile]) -> Manifest:
    """The manifest of an artifact whose build record has the bytes ``record``."""
    config = Descriptor(mediaType=RECORD_TYPE, digest="sha256:" + hashlib.sha256(record).hexdigest(), size=len(record))
    layers: list[Descriptor] = []
    for file in sorted(files, key=lambda file: file.record.path):
        for number, part in enumerate(file.parts, start=1):
            annotations = {TITLE: file.record.path}
            if len(file.parts) > 1:
                annotations[TITLE] += part_suffix(number, len(file.parts))
                annotations[PART] = f"{number}/{len(file.parts)}"
            layers.append(
                Descriptor(mediaType=LAYER_TYPE, digest=f"sha256:{part.hex}", size=part.size, annotations=annotations)
            )
    return Manifest(config=config, layers=layers)


def contents(manifest: Manifest, record: BuildRecord, *, where: str) -> list[StoredFile]:
    """The files of an artifact, in order of path, after manifest and build record were found to agree.

    Raises:
        ArtifactCorruptError: a path that leaves the tree, a file twice or missing, parts out of order, sizes or
            digests that differ.
    """
    check_record(record, where=where)
    by_title: dict[str, list[Descriptor]] = {}
    last = ""
    for layer in manifest.layers:
        title = _path_of(layer, where=where)
        if problem := path_problem(title):
            raise ArtifactCorruptError(f"the path {title!r} {problem}", where=where)
        if title in by_title and title != last:
            raise ArtifactCorruptError(f"the parts of {title} do not follow each other", where=where)
        by_title.setdefault(title, []).append(layer)
        last = title
    records = {file.path: file for file in record.files}
    if missing := sorted(records.keys() - by_title.keys()):
        raise ArtifactCorruptError(f"the manifest has no layer for {missing[0]}", where=where)
    if extra := sorted(by_title.keys() - records.keys()):
        raise ArtifactCorruptError(f"the build record does not know {extra[0]}", where=where)
    return [StoredFile(records[path], _parts(records[path], by_title[path], where=where)) for path in sorted(by_title)]


def _path_of(layer: Descriptor, *, where: str) -> str:
    """The file that a layer belongs to: its title, which ends with the number of the part where there are some."""
    title, named = layer.annotations.get(TITLE, ""), layer.annotations.get(PART)
    if named is None:
        return title
    number, _, parts = named.partition("/")
    # At most 6 digits: a number of parts that no manifest has room for.
    if number.isdecimal() and parts.isdecimal() and len(named) < 14:
        suffix = part_suffix(int(number), int(parts))
        if title.endswith(suffix):
            return title.removesuffix(suffix)
    raise ArtifactCorruptError(f"the layer {title!r} is marked as part {named!r}", where=where)


def with_records(files: Sequence[StoredFile], record: BuildRecord, *, where: str) -> list[StoredFile]:
    """Files that others pushed, one layer each, with the chunk digests of the build record that came with them.

    Raises :class:`ArtifactCorruptError` where the two do not agree.
    """
    check_record(record, where=where)
    records = {file.path: file for file in record.files}
    known = {(file.path, file.size, file.sha256) for file in record.files}
    found = {(file.record.path, file.record.size, file.record.sha256) for file in files}
    if differing := sorted(known ^ found):
        raise ArtifactCorruptError(f"manifest and build record do not agree on {differing[0][0]}", where=where)
    return [StoredFile(records[file.record.path], file.parts) for file in files]


def _parts(file: FileRecord, layers: Sequence[Descriptor], *, where: str) -> tuple[Part, ...]:
    parts: list[Part] = []
    offset = 0
    for number, layer in enumerate(layers, start=1):
        named = layer.annotations.get(PART)
        expected = f"{number}/{len(layers)}" if len(layers) > 1 else None
        if named != expected:
            raise ArtifactCorruptError(
                f"layer {number} of {len(layers)} of {file.path} is marked as part {named}", where=where
            )
        if number < len(layers) and (layer.size == 0 or layer.size % documents.CHUNK_BYTES):
            raise ArtifactCorruptError(f"part {named} of {file.path} is no whole number of chunks", where=where)
        if layer.size <= documents.CHUNK_BYTES and layer.hex != file.chunks[offset // documents.CHUNK_BYTES]:
            raise ArtifactCorruptError(f"manifest and build record give {file.path} different digests", where=where)
        parts.append(Part(layer.hex, offset, layer.size))
        offset += layer.size
    if offset != file.size:
        raise ArtifactCorruptError(
            f"{file.path} has {offset} bytes in the manifest and {file.size} in the build record", where=where
        )
    if len(parts) == 1 and parts[0].hex != file.sha256:
        raise ArtifactCorruptError(f"manifest and build record give {file.path} different digests", where=where)
    if len(parts) > 1 and parts[-1].size == 0:
        raise ArtifactCorruptError(f"the last part of {file.path} is empty", where=where)
    return tuple(parts)


def check_record(record: BuildRecord, *, where: str) -> None:
    """Refuse a build record whose files cannot be a tree, or whose chunk digests do not cover its files.

    Raises :class:`ArtifactCorruptError`.
    """
    seen: set[str] = set()
    for file in record.files:
        if problem := path_problem(file.path):
            raise ArtifactCorruptError(f"the path {file.path!r} {problem}", where=where)
        if file.path in seen:
            raise ArtifactCorruptError(f"{file.path} is listed twice", where=where)
        seen.add(file.path)
        expected = max(1, -(-file.size // documents.CHUNK_BYTES))
        if len(file.chunks) != expected:
            raise ArtifactCorruptError(
                f"{file.path} has {len(file.chunks)} chunk digests, but its size makes {expected} chunks",
                where=where,
                fix="run `engineroom assemble` again",
            )
        if expected == 1 and file.chunks[0] != file.sha256:
            raise ArtifactCorruptError(f"{file.path} is one chunk, but its two digests differ", where=where)
    if both := sorted(seen & folders_of(seen)):
        raise ArtifactCorruptError(f"{both[0]} is a file and a folder", where=where)


def path_problem(path: str) -> str:
    """Why ``path`` cannot be a file of an artifact; empty where it can."""
    if not path:
        return "is empty"
    if path.startswith("/"):
        return "is absolute"
    if "\\" in path or not path.isprintable():
        return "has a backslash or a control character"
    parts = path.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return "has an empty part, '.' or '..'"
    # Linux: NAME_MAX 255 bytes, PATH_MAX 4096 with the folder that it goes into.
    if any(len(part.encode()) > 255 for part in parts) or len(path.encode()) > 2048:
        return "is too long for a file system"
    if parts[0] == RECORD_FILE:
        return "is the build record's own, which is the config blob and no layer"
    return ""


def folders_of(paths: Iterable[str]) -> set[str]:
    """Every folder on the way to one of ``paths``."""
    return {path[:end] for path in paths for end, character in enumerate(path) if character == "/"}


def describe_chunk(file: FileRecord, number: int) -> str:
    """``engine/model.bin, chunk 2 of 3``: how errors name a piece of a file."""
    return f"{file.path}, chunk {number + 1} of {max(1, len(file.chunks))}"


def unique_parts(files: Sequence[StoredFile]) -> Mapping[str, tuple[StoredFile, Part]]:
    """Every blob once, by its digest, with a file that holds it: equal files share their blobs."""
    blobs: dict[str, tuple[StoredFile, Part]] = {}
    for file in files:
        for part in file.parts:
            blobs.setdefault(part.hex, (file, part))
    return blobs
