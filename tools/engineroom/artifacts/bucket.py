"""A store in a bucket (``s3://``, ``gs://``, ``az://``), through obstore; ``bucket_clients`` has the settings."""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from engineroom.artifacts.bucket_clients import SETTINGS, make_client
from engineroom.artifacts.manifest import MAX_BYTES
from engineroom.artifacts.store import (
    MAX_TAG_BYTES,
    BlobEntry,
    ManifestsAsBlobs,
    NoticeEntry,
    Pointer,
    TagEntry,
    TagState,
    as_bytes,
    check_size,
)
from engineroom.errors import ArtifactNotFoundError, StoreError

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta, UpdateVersion

    from engineroom.artifacts.bucket_clients import Client

#: Part of a multipart upload: the shortest that S3 takes. SeaweedFS, which hashes each part three times, needs 5 to
#: 10 % less processor time for it than for 8 MiB (2 cores, 32 MiB of cache).
_PART = 5 << 20
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html; layers of 52 GB.
_MOST_PARTS = 10_000
#: Parts of one blob on their way at once: with 4 blobs, 80 MiB of memory.
_CONCURRENT_PARTS = 3
#: What is read at once. Larger pieces are new memory each time, whose pages the kernel has to clear: 2 GiB in pieces of
#: 2 MiB cost 82,000 page faults and 5.5 s, in pieces of 128 KiB 35,000 and 3.1 s (SeaweedFS, 2 cores).
_PIECE = 128 << 10
#: A blob up to here is read in one.
_WHOLE = 2 << 20
#: A silence after which a transfer begins anew. It runs while a part is sent, too: 5 MiB at 0.35 Mbit/s.
STALL_SECONDS = 120


class BucketStore(ManifestsAsBlobs):
    """Blobs and tags as objects. A multipart upload is invisible until it is completed, and then whole."""

    longest_blob: int | None = _MOST_PARTS * _PART
    readers = 64

    def __init__(self, scheme: str, bucket: str, prefix: str, *, small: "Client", bulk: "Client") -> None:
        self.root = f"{scheme}://{bucket}/{prefix}".rstrip("/")
        self._scheme = scheme
        self._prefix = f"{prefix}/" if prefix else ""
        self._small = small
        self._bulk = bulk

    @classmethod
    def from_environment(cls, scheme: str, location: str) -> "BucketStore":
        """The bucket (and prefix) at ``location``. Connects to nothing yet."""
        bucket, _, prefix = location.partition("/")
        try:
            # obstore retries 10 times within 180 s by default. Tags, manifests and sizes are asked for first, so an
            # endpoint that is not there, or hangs, is an error within 20 s; 64 MiB may take minutes on a slow line.
            small = make_client(scheme, bucket, timeout=120, stall=12, retries=3, patience=8)
            bulk = make_client(scheme, bucket, timeout=600, stall=STALL_SECONDS, retries=5, patience=60)
        except Exception as error:
            raise StoreError(
                _first_line(error),
                where=f"{scheme}://{location}",
                fix=f"check {SETTINGS[scheme].credentials} and {SETTINGS[scheme].endpoint}",
            ) from None
        return cls(scheme, bucket, prefix, small=small, bulk=bulk)

    def blob_size(self, blob: str) -> int | None:
        """Bytes of a blob, or None."""
        import obstore

        with self._translated():
            try:
                return int(obstore.head(self._small, self._blob(blob))["size"])
            except FileNotFoundError:
                return None

    def read_blob(self, blob: str, start: int, end: int, *, size: int) -> Iterator[memoryview]:
        """One GET, streamed; ranged where a piece is wanted."""
        import obstore
        from obstore.exceptions import BaseError

        end = min(end, size)
        if start >= end:
            return
        # rclone's server answers a range that is the whole object with 200, which obstore takes for an error.
        wanted: GetOptions = {} if end - start == size else {"range": (start, end)}
        left = end - start
        with self._translated():
            try:
                result = obstore.get(self._bulk, self._blob(blob), options=wanted)
            except FileNotFoundError:
                raise ArtifactNotFoundError(f"there is no blob sha256:{blob}", where=self.root) from None
            except BaseError as error:
                if "416" in str(error) and (found := self.blob_size(blob)) is not None:
                    check_size(blob, found, size, where=self.root)  # the range begins behind its end
                raise
            check_size(blob, result.meta["size"], size, where=self.root)
            if left <= _WHOLE:
                yield memoryview(result.bytes())[:left]
                return
            for piece in result.stream(min_chunk_size=_PIECE):
                if not left:
                    return  # an object that grew
                yield memoryview(piece)[:left]
                left -= min(left, len(piece))

    def write_blob(self, blob: str, size: int, pieces: Iterable[memoryview]) -> None:
        """One PUT for small blobs, a multipart upload for others; both are atomic."""
        import obstore

        failure: list[BaseException] = []

        def parts() -> Iterator[bytes]:
            # obstore keeps what it is given until it is sent. A piece that is one part is not copied if it need not.
            written, part = 0, bytearray()
            try:
                for piece in pieces:
                    written += len(piece)
                    if not part and len(piece) == _PART:
                        yield as_bytes(piece)
                        continue
                    part += piece
                    if len(part) >= _PART:
                        yield bytes(part)
                        part = bytearray()
                if written != size:
                    raise StoreError(f"{written} bytes came for a blob of {size}", where=f"{self.root}: {blob}")
            except BaseException as error:
                failure.append(error)
                raise
            if part or not written:
                yield bytes(part)

        with self._translated():
            try:
                if size <= _PART:
                    whole = [as_bytes(piece) for piece in pieces]
                    data = whole[0] if len(whole) == 1 else b"".join(whole)
                    if len(data) != size:
                        raise StoreError(f"{len(data)} bytes came for a blob of {size}", where=f"{self.root}: {blob}")
                    obstore.put(self._bulk, self._blob(blob), data, use_multipart=False)
                else:
                    obstore.put(
                        self._bulk,
                        self._blob(blob),
                        parts(),
                        use_multipart=True,
                        chunk_size=_PART,
                        max_concurrency=_CONCURRENT_PARTS,
                    )
            except FileNotFoundError as error:
                raise self._no_bucket(error) from None
            except BaseException:
                # obstore may wrap what the iterator raised; the caller wants the cause.
                if failure:
                    raise failure[0] from None
                raise

    def add_blob(self, blob: str, data: bytes) -> bool:
        """A PUT on condition that it is not there."""
        if self._create(self._bulk, self._blob(blob), data):
            return True
        if self.blob_size(blob) == len(data):
            return False
        self.write_blob(blob, len(data), [memoryview(data)])
        return True

    def read_manifest(self, blob: str) -> bytes | None:
        """One GET, which brings the size along; not read on where that is too long."""
        import obstore

        with self._translated():
            try:
                result = obstore.get(self._small, self._blob(blob))
            except FileNotFoundError:
                return None
            if result.meta["size"] <= MAX_BYTES:
                return bytes(result.bytes())
            data = bytearray()
            for piece in result.stream(min_chunk_size=_PIECE):
                data += piece
                if len(data) > MAX_BYTES:
                    break
            return bytes(data)

    def read_tag(self, name: str, tag: str) -> TagState | None:
        """What a tag names, or None."""
        import obstore

        with self._translated():
            try:
                result = obstore.get(self._small, self._tag(name, tag))
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise self._no_bucket(error) from None
                return None
            meta = result.meta
            data = bytes(result.bytes()) if meta["size"] <= MAX_TAG_BYTES else b""
        pointer = Pointer.parse(data, where=f"{self.root}/{name}:{tag}")
        # Google compares generations, the others ETags.
        version = meta["version"] if self._scheme == "gs" else meta["e_tag"]
        return TagState(pointer, version or "", meta["last_modified"])

    def create_tag(self, name: str, tag: str, pointer: Pointer) -> bool:
        """PUT with ``If-None-Match: *``."""
        return self._create(self._small, self._tag(name, tag), pointer.to_json())

    def move_tag(self, name: str, tag: str, pointer: Pointer, *, expected: TagState) -> bool:
        """PUT with ``If-Match`` and the ETag, or the generation, that was read."""
        import obstore
        from obstore.exceptions import PreconditionError

        with self._translated():
            try:
                mode: UpdateVersion = (
                    {"version": expected.version} if self._scheme == "gs" else {"e_tag": expected.version}
                )
                obstore.put(self._small, self._tag(name, tag), pointer.to_json(), mode=mode)
            except (PreconditionError, FileNotFoundError):
                return False
        return True

    def write_tag(self, name: str, tag: str, pointer: Pointer) -> None:
        """A plain PUT."""
        import obstore

        with self._translated():
            obstore.put(self._small, self._tag(name, tag), pointer.to_json(), use_multipart=False)

    def tags(self, name: str) -> list[str]:
        """Objects directly below the name's tags."""
        return [entry.tag for entry in self.list_tags(name)]

    def names(self) -> list[str]:
        """Common prefixes below ``refs/``."""
        import obstore

        prefix = f"{self._prefix}refs/"
        with self._translated():
            try:
                listing = obstore.list_with_delimiter(self._small, prefix)
            except FileNotFoundError as error:
                raise self._no_bucket(error) from None
            found = [path.rstrip("/").removeprefix(prefix) for path in listing["common_prefixes"]]
        return sorted(name for name in found if not name.startswith("."))

    def list_tags(self, name: str | None = None) -> list[TagEntry]:
        """One listing below ``refs/``, whatever the number of names."""
        prefix = f"{self._prefix}refs/"
        found = []
        for path, meta in self._list(f"{prefix}{name}/tags/" if name else prefix):
            match path.removeprefix(prefix).split("/"):
                case [each, "tags", tag] if each[0] != "." and tag[0] != ".":
                    # What S3 and Google say of an object that came in one piece and is not encrypted with a key of
                    # the user's is its MD5; else it is none that anybody looks for.
                    version = meta["e_tag"] or ""
                    found.append(TagEntry(tag, meta["last_modified"], each, version, version.strip('"')))
        return sorted(found, key=lambda entry: (entry.name, entry.tag))

    def blobs(self) -> Iterator[BlobEntry]:
        """Objects below ``blobs/sha256/``."""
        prefix = f"{self._prefix}blobs/sha256/"
        for path, meta in self._list(prefix):
            yield BlobEntry(path.removeprefix(prefix), meta["size"], meta["last_modified"])

    def remove_blobs(self, blobs: Sequence[str]) -> None:
        """DELETE of many objects in one request."""
        self._delete([self._blob(blob) for blob in blobs])

    def remove_tag(self, name: str, tag: str) -> None:
        """DELETE."""
        self._delete([self._tag(name, tag)])

    def post(self, notice: str, data: bytes) -> None:
        """A plain PUT."""
        import obstore

        with self._translated():
            try:
                obstore.put(self._small, f"{self._prefix}notices/{notice}", data, use_multipart=False)
            except FileNotFoundError as error:
                raise self._no_bucket(error) from None

    def notices(self) -> list[NoticeEntry]:
        """Objects below ``notices/``."""
        prefix = f"{self._prefix}notices/"
        return [NoticeEntry(path.removeprefix(prefix), meta["last_modified"]) for path, meta in self._list(prefix)]

    def read_notice(self, notice: str) -> bytes | None:
        """GET."""
        import obstore

        with self._translated():
            try:
                return bytes(obstore.get(self._small, f"{self._prefix}notices/{notice}").bytes())
            except FileNotFoundError:
                return None

    def withdraw(self, *notices: str) -> None:
        """DELETE of many objects in one request."""
        self._delete([f"{self._prefix}notices/{notice}" for notice in notices])

    def _list(self, prefix: str) -> "Iterator[tuple[str, ObjectMeta]]":
        import obstore

        with self._translated():
            try:
                for page in obstore.list(self._small, prefix, chunk_size=1000):
                    for meta in page:
                        yield meta["path"], meta
            except FileNotFoundError as error:
                raise self._no_bucket(error) from None

    def _delete(self, paths: list[str]) -> None:
        import obstore

        with self._translated(), suppress(FileNotFoundError):
            if paths:
                obstore.delete(self._small, paths if len(paths) > 1 else paths[0])

    def keeps_conditions(self) -> bool:
        """Create one object twice: the second must be refused. rclone's server lets it overwrite."""
        import obstore

        path = f"{self._prefix}refs/.probe-{secrets.token_hex(8)}"
        try:
            return self._create(self._small, path, b"first") and not self._create(self._small, path, b"second")
        except StoreError as error:
            # Servers that know conditional writes of neither kind may answer 501 instead of ignoring them.
            if "501" in error.found or "NotImplemented" in error.found:
                return False
            raise
        finally:
            with suppress(Exception):
                obstore.delete(self._small, path)

    def _create(self, client: "Client", path: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._translated():
            try:
                obstore.put(client, path, data, mode="create")
            except AlreadyExistsError:
                return False
            except FileNotFoundError as error:
                raise self._no_bucket(error) from None
        return True

    def _blob(self, blob: str) -> str:
        return f"{self._prefix}blobs/sha256/{blob}"

    def _tag(self, name: str, tag: str) -> str:
        return f"{self._prefix}refs/{name}/tags/{tag}"

    def _no_bucket(self, error: Exception) -> StoreError:
        return StoreError(
            f"the store has no such bucket ({_first_line(error)})", where=self.root, fix="make the bucket first"
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise StoreError(
                f"access was refused ({_first_line(error)})",
                where=self.root,
                fix=f"check {SETTINGS[self._scheme].credentials} and the permissions to read, write and list",
            ) from None
        except (BaseError, FileNotFoundError, OSError, ValueError) as error:
            raise StoreError(
                _first_line(error), where=self.root, fix=f"check {SETTINGS[self._scheme].endpoint} and the credentials"
            ) from None


def _first_line(error: BaseException) -> str:
    """The sentence of an obstore error; its debug dump follows after an empty line."""
    text = " ".join(str(error).split("Debug source:")[0].split())
    return text if len(text) <= 400 else text[:397] + "..."
