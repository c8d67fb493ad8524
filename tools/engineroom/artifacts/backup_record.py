"""The backup record: what a backup holds. A backup is an OCI manifest whose first layer is this document.

::

    tag ─► manifest (artifactType …backup.v1)
             ├─ config: the empty object, as OCI asks of what is no image
             └─ layers: 1. the backup record   2. the manifest of every artifact   3. the release values

The record names the pieces of the backed-up folders: 64 MiB each, stored as blobs, so that the next backup sends only
pieces that changed, and equal files are stored once. Manifests of artifacts are the same bytes, with the same digest,
as in the store that they come from.
"""

import hashlib
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints, ValidationError

from engineroom import documents
from engineroom.artifacts.manifest import MAX_BYTES, MEDIA_TYPE, Descriptor, Digest, path_problem
from engineroom.artifacts.store import BACKUP_TYPE
from engineroom.documents import Document, Strict, canonical, first_problem
from engineroom.errors import ArtifactCorruptError

RECORD_TYPE: Final = "application/vnd.engineroom.backup-record.v1+json"
VALUES_TYPE = "application/yaml"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
#: The config of every backup. https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md#guidance-for-an-empty-descriptor
EMPTY = b"{}"

#: Longest backup record: some 200,000 files.
MAX_RECORD_BYTES = 32 * 1024 * 1024

Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class SavedArtifact(Strict):
    """One artifact."""

    source: str
    """The reference that it was read from, with its digest."""
    name: str = Field(min_length=1, max_length=255)
    """What it is called where it is restored, as in ``source``."""
    tag: str | None = None
    digest: Digest
    """Of its manifest."""
    size: int = Field(ge=1, le=MAX_BYTES)
    """Of its manifest, bytes."""


class SavedEntry(Strict):
    """A file, link or folder of a backed-up folder."""

    path: str
    """Relative to the folder, with forward slashes."""
    kind: Literal["file", "link", "folder"]
    mode: int = Field(ge=0, le=0o7777)
    """Permission bits."""
    modified: int = Field(ge=-(1 << 52), le=1 << 52)
    """Microseconds since 1970 (UTC)."""
    size: int = Field(default=0, ge=0, lt=1 << 53)
    """Bytes; 0 for what is no file."""
    chunks: list[Hex] = Field(default_factory=list)
    """SHA-256 of each 64 MiB of a file, in order: the blobs that hold it. An empty file has none."""
    target: str = ""
    """Where a link leads, inside the folder."""


class SavedFolder(Strict):
    """One folder, such as the volume with the checkpoints that engines were built from."""

    path: str
    """Where it was, absolute."""
    name: str = Field(pattern=r"^[^/]+$")
    """Last part of ``path``: its place below ``--folder-to`` where a backup has several."""
    entries: list[SavedEntry]

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(entry.size for entry in self.entries)


class SavedValues(Strict):
    """The values of the release."""

    sha256: Hex
    size: int = Field(ge=0, lt=1 << 30)


class BackupRecord(Document):
    """What a backup holds."""

    created: str
    """When it was begun: ISO 8601, UTC."""
    artifacts: list[SavedArtifact] = Field(default_factory=list)
    folders: list[SavedFolder] = Field(default_factory=list)
    values: SavedValues | None = None

    def chunks(self) -> dict[str, tuple[int, str]]:
        """Size of every piece of the folders, and a file that holds it, by its digest."""
        return {
            chunk: (min(documents.CHUNK_BYTES, entry.size - number * documents.CHUNK_BYTES), entry.path)
            for folder in self.folders
            for entry in folder.entries
            for number, chunk in enumerate(entry.chunks)
        }

    def check(self, *, where: str) -> None:
        """Refuse a record whose folders cannot be restored safely. Raises :class:`ArtifactCorruptError`."""
        for folder in self.folders:
            if folder.name in {".", ".."} or not folder.name.isprintable():
                raise ArtifactCorruptError(f"{folder.name!r} is no name of a folder", where=where)
            kinds: dict[str, str] = {}
            for entry in folder.entries:
                if (problem := path_problem(entry.path)) and not problem.startswith("is the build record"):
                    raise ArtifactCorruptError(f"the path {entry.path!r} {problem}", where=where)
                if entry.path in kinds:
                    raise ArtifactCorruptError(f"{entry.path} is listed twice", where=where)
                kinds[entry.path] = entry.kind
                wanted = -(-entry.size // documents.CHUNK_BYTES)
                if len(entry.chunks) != wanted or (entry.kind != "file" and entry.size):
                    raise ArtifactCorruptError(f"size and pieces of {entry.path} contradict", where=where)
                if entry.kind == "link" and (problem := link_problem(entry.path, entry.target)):
                    raise ArtifactCorruptError(f"the link {entry.path!r} {problem}", where=where)
            for path in kinds:
                parent = path.rpartition("/")[0]
                if parent and kinds.get(parent) != "folder":
                    raise ArtifactCorruptError(f"{path} lies in no folder of the backup", where=where)


def link_problem(path: str, target: str) -> str:
    """Why a link may not be restored; empty where it leads to a place inside its folder."""
    if not target or target.startswith("/") or "\0" in target:
        return "leads out of the folder"
    depth = path.count("/")
    for part in target.split("/"):
        depth += -1 if part == ".." else 0 if part in {"", "."} else 1
        if depth < 0:
            return "leads out of the folder"
    return ""


class BackupManifest(Strict):
    """An OCI manifest of a backup; other keys are refused."""

    schema_version: Literal[2] = Field(default=2, alias="schemaVersion")
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"] = Field(default=MEDIA_TYPE, alias="mediaType")
    artifact_type: Literal["application/vnd.engineroom.backup.v1"] = Field(default=BACKUP_TYPE, alias="artifactType")
    config: Descriptor
    layers: list[Descriptor] = Field(min_length=1)

    def to_json(self) -> bytes:
        """The one spelling of this manifest."""
        value = self.model_dump(mode="json", by_alias=True)
        for descriptor in [value["config"], *value["layers"]]:
            del descriptor["annotations"]
        return canonical(value)

    @classmethod
    def of(cls, record: BackupRecord) -> "BackupManifest":
        """The manifest of a backup."""
        data = record.to_json()
        layers = [_descriptor(RECORD_TYPE, hashlib.sha256(data).hexdigest(), len(data))]
        sizes = {saved.digest: saved.size for saved in record.artifacts}
        layers += [_descriptor(MEDIA_TYPE, digest.removeprefix("sha256:"), size) for digest, size in sizes.items()]
        if record.values:
            layers.append(_descriptor(VALUES_TYPE, record.values.sha256, record.values.size))
        config = _descriptor(EMPTY_TYPE, hashlib.sha256(EMPTY).hexdigest(), len(EMPTY))
        return cls(config=config, layers=layers)

    @classmethod
    def parse(cls, data: bytes, *, where: str) -> "BackupManifest":
        """Read a manifest. Raises :class:`ArtifactCorruptError` where it is no backup of ours."""
        try:
            manifest = cls.model_validate_json(data)
        except ValidationError as error:
            path, found = first_problem(error)
            raise ArtifactCorruptError(
                f"it is no backup of engineroom: {path + ': ' if path else ''}{found}", where=where
            ) from None
        if manifest.layers[0].media_type != RECORD_TYPE or manifest.layers[0].size > MAX_RECORD_BYTES:
            raise ArtifactCorruptError("its first layer is no backup record", where=where)
        return manifest


def _descriptor(media_type: str, blob: str, size: int) -> Descriptor:
    return Descriptor(mediaType=media_type, digest=f"sha256:{blob}", size=size)
