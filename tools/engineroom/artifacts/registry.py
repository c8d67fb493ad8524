"""A store in an OCI registry (``oci://``), by the distribution API.

A client of our own, on httpx: oras-py 0.2 reads no ranges and uploads in chunks that its maintainers call flaky
(docs/decisions/0007-registries.md). What a registry has instead of our tag objects are its own tags, which name a
manifest, and for which no conditional write exists.
https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md
"""

import json
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from engineroom.artifacts.manifest import MAX_BYTES, MEDIA_TYPE
from engineroom.artifacts.parallel import PATIENCE, RETRIES
from engineroom.artifacts.registry_auth import RegistryAuth
from engineroom.artifacts.store import NO_TIME, Pointer, Store, TagEntry, TagState, as_bytes, check_size
from engineroom.errors import ArtifactNotFoundError, StoreError

#: Connections at once; more than transfers side by side (``parallel.WORKERS``), less than registries object to.
_CONNECTIONS = 16
#: Answers that may be another one in a moment.
_AGAIN = {408, 429, 500, 502, 503, 504}
_LONGEST_WAIT = 10.0
#: A silence after which a request begins anew; to close an upload of some GB takes a registry so long.
STALL_SECONDS = 120
#: Pages of a listing: 1,000 tags each.
_MAX_PAGES = 1000
_LOCAL = ("localhost", "127.0.0.1", "[::1]")


class RegistryStore:
    """Blobs of one repository, and the tags of all. Uploads become visible by their last request, whole."""

    has_conditions = False
    longest_blob: int | None = None
    readers = _CONNECTIONS

    def __init__(
        self, host: str, name: str | None, *, plain_http: bool = False, client: httpx2.Client | None = None
    ) -> None:
        self.root = f"oci://{host}"
        self._host, self._name, self._plain = host, name, plain_http
        server = "registry-1.docker.io" if host == "docker.io" else host
        # As docker, oras and crane do: nobody has a certificate for the loopback address.
        scheme = "http" if plain_http or host.rsplit(":", 1)[0] in _LOCAL or host in _LOCAL else "https"
        self._base = httpx2.URL(f"{scheme}://{server}")
        self._client = client or httpx2.Client(
            auth=RegistryAuth(host, self._base),
            follow_redirects=True,
            timeout=httpx2.Timeout(STALL_SECONDS, connect=4, pool=None),
            limits=httpx2.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS),
            headers={"User-Agent": "engineroom", "Accept-Encoding": "identity"},
        )
        self._written: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def within(self, name: str) -> Store:
        """The same registry, and the blobs of another repository."""
        return RegistryStore(self._host, name, plain_http=self._plain, client=self._client)

    def blob_size(self, blob: str) -> int | None:
        """HEAD of the blob."""
        answer = self._ask("HEAD", self._path(f"blobs/sha256:{blob}"))
        return None if answer is None else self._length(answer)

    def read_blob(self, blob: str, start: int, end: int, *, size: int) -> Iterator[memoryview]:
        """One GET, ranged where a piece is wanted."""
        end = min(end, size)
        if start >= end:
            return
        ranged = end - start != size
        headers = {"Range": f"bytes={start}-{end - 1}"} if ranged else {}
        with self._translated(), self._client.stream("GET", self._path(f"blobs/sha256:{blob}"), headers=headers) as got:
            if got.status_code == 404:
                raise ArtifactNotFoundError(f"there is no blob sha256:{blob}", where=self._where)
            if got.status_code not in {200, 206}:
                got.read()
                raise self._refused(got)
            total = got.headers.get("Content-Range", "").rpartition("/")[2] or got.headers.get("Content-Length", "")
            if total.isdecimal():
                check_size(blob, int(total), size, where=self._where)
            # Ranges are optional for a registry: one that sends all of it is read up to the end of the range.
            skip = start if ranged and got.status_code == 200 else 0
            left = end - start
            for data in got.iter_raw():
                piece = memoryview(data)
                if skip:
                    skipped = min(skip, len(piece))
                    piece, skip = piece[skipped:], skip - skipped
                if piece and left:
                    yield piece[:left]
                    left -= min(left, len(piece))
                if not left:
                    return

    def write_blob(self, blob: str, size: int, pieces: Iterable[memoryview]) -> None:
        """POST for an upload, then one PUT with the digest, which the registry compares before it shows the blob."""
        upload = self._ask("POST", self._path("blobs/uploads/"), expected={202})
        assert upload is not None
        location = upload.headers.get("Location")
        if not location:
            raise StoreError("it began an upload without saying where", where=self._where)
        url = upload.request.url.join(location)
        failure: list[BaseException] = []

        def body() -> Iterator[bytes]:
            written = 0
            try:
                for piece in pieces:
                    written += len(piece)
                    yield as_bytes(piece)
                if written != size:
                    raise StoreError(f"{written} bytes came for a blob of {size}", where=f"{self._where}: {blob}")
            except BaseException as error:
                failure.append(error)
                raise

        try:
            with self._translated():
                answer = self._client.put(
                    url.copy_merge_params({"digest": f"sha256:{blob}"}),
                    content=body(),
                    headers={"Content-Length": str(size), "Content-Type": "application/octet-stream"},
                )
        except BaseException:
            if failure:
                raise failure[0] from None  # the client may wrap what the iterator raised; the caller wants the cause
            raise
        if answer.status_code != 201:
            raise self._refused(answer)

    def add_blob(self, blob: str, data: bytes) -> bool:
        """Look, then write."""
        if self.blob_size(blob) == len(data):
            return False
        self.write_blob(blob, len(data), [memoryview(data)])
        return True

    def read_manifest(self, blob: str) -> bytes | None:
        """GET by digest."""
        found = self._get_manifest(self._name, f"sha256:{blob}")
        return None if found is None else found[0]

    def write_manifest(self, blob: str, data: bytes) -> None:
        """PUT by digest. A registry refuses a manifest whose blobs it has not."""
        self._put_manifest(self._name, f"sha256:{blob}", data)
        with self._lock:
            self._written = {blob: data}

    def read_tag(self, name: str, tag: str) -> TagState | None:
        """GET the manifest that the tag names."""
        found = self._get_manifest(name, tag)
        if found is None:
            return None
        data, modified = found
        return TagState(Pointer.to(data), "", modified)

    def create_tag(self, name: str, tag: str, pointer: Pointer) -> bool:
        """Look, PUT, look again: of two writers in the same instant, one may not learn that it lost."""
        if self.read_tag(name, tag) is not None:
            return False
        self.write_tag(name, tag, pointer)
        return self._names(name, tag, pointer)

    def move_tag(self, name: str, tag: str, pointer: Pointer, *, expected: TagState) -> bool:
        """Look, PUT, look again."""
        current = self.read_tag(name, tag)
        if current is None or current.pointer != expected.pointer:
            return False
        self.write_tag(name, tag, pointer)
        return self._names(name, tag, pointer)

    def write_tag(self, name: str, tag: str, pointer: Pointer) -> None:
        """PUT the manifest, which the registry must have already, under the tag."""
        blob = pointer.digest.removeprefix("sha256:")
        with self._lock:
            data = self._written.get(blob)
        if data is None:
            found = self._get_manifest(name, pointer.digest)
            if found is None:
                raise ArtifactNotFoundError(f"there is no manifest {pointer.digest}", where=f"{self.root}/{name}")
            data = found[0]
        self._put_manifest(name, tag, data)

    def tags(self, name: str) -> list[str]:
        """``tags/list``, page by page."""
        return sorted(self._pages(f"/v2/{name}/tags/list?n=1000", "tags"))

    def list_tags(self, name: str | None = None) -> list[TagEntry]:
        """Tags; a registry does not say when they were written."""
        return [TagEntry(tag, NO_TIME, each) for each in ([name] if name else self.names()) for tag in self.tags(each)]

    def names(self) -> list[str]:
        """``_catalog``, which many registries keep for their administrators."""
        try:
            return sorted(self._pages("/v2/_catalog?n=1000", "repositories"))
        except StoreError as error:
            raise StoreError(
                f"it does not list its repositories ({error.found})",
                where=self.root,
                fix=f"name one: {self.root}/REPOSITORY",
            ) from None

    def keeps_conditions(self) -> bool:
        """No registry does."""
        return False

    @property
    def _where(self) -> str:
        return f"{self.root}/{self._name}" if self._name else self.root

    def _path(self, rest: str) -> httpx2.URL:
        if self._name is None:
            raise StoreError("a registry keeps blobs by repository, and none is named", where=self.root)
        return self._base.join(f"/v2/{self._name}/{rest}")

    def _names(self, name: str, tag: str, pointer: Pointer) -> bool:
        current = self.read_tag(name, tag)
        return current is not None and current.pointer == pointer

    def _get_manifest(self, name: str | None, which: str) -> tuple[bytes, datetime] | None:
        url = self._base.join(f"/v2/{name}/manifests/{which}")
        answer = self._ask("GET", url, headers={"Accept": MEDIA_TYPE}, limit=MAX_BYTES + 1)
        if answer is None:
            return None
        # Docker-Content-Digest is not believed: whoever asks compares the bytes.
        try:
            modified = parsedate_to_datetime(answer.headers.get("Last-Modified", ""))
        except ValueError:
            modified = NO_TIME
        return answer.content, modified if modified.tzinfo else NO_TIME

    def _put_manifest(self, name: str | None, which: str, data: bytes) -> None:
        kind = json.loads(data).get("mediaType", MEDIA_TYPE)  # somebody else's manifest may be copied as it is
        url = self._base.join(f"/v2/{name}/manifests/{which}")
        self._ask("PUT", url, content=data, headers={"Content-Type": kind}, expected={200, 201, 202})

    def _pages(self, path: str, key: str) -> Iterator[str]:
        url = self._base.join(path)
        for _ in range(_MAX_PAGES):
            answer = self._ask("GET", url)
            if answer is None:
                return
            try:
                entries = answer.json()[key] or []
            except (ValueError, KeyError, TypeError):
                raise StoreError(f"its answer holds no {key}", where=str(url)) from None
            yield from (entry for entry in entries if isinstance(entry, str))
            following = answer.links.get("next", {}).get("url")
            if not following:
                return
            url = url.join(following)

    def _ask(
        self, method: str, url: httpx2.URL, *, expected: Iterable[int] = (200,), limit: int = 32 << 20, **options: Any
    ) -> httpx2.Response | None:
        """One small request, repeated while the registry is busy or breaks off; None for 404 of GET and HEAD."""
        for attempt in range(RETRIES + 1):
            last = attempt == RETRIES
            try:
                with self._translated(), self._client.stream(method, url, **options) as answer:
                    wait = _wait(answer, attempt)
                    data = bytearray()
                    for piece in answer.iter_raw():
                        data += piece
                        if len(data) > limit:
                            break
                    small = httpx2.Response(
                        answer.status_code, headers=answer.headers, content=bytes(data), request=answer.request
                    )
            except _BrokenError as error:
                if last:
                    raise StoreError(error.found, where=error.where, fix=error.fix) from None
                wait = PATIENCE * 2**attempt
            else:
                if small.status_code in expected:
                    return small
                if small.status_code == 404 and method in {"GET", "HEAD"}:
                    return None
                if last or small.status_code not in _AGAIN:
                    raise self._refused(small)
            time.sleep(wait)
        raise AssertionError("unreachable")

    def _length(self, answer: httpx2.Response) -> int:
        length = answer.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise StoreError("it does not say how long a blob is", where=self._where)
        return int(length)

    def _refused(self, answer: httpx2.Response) -> StoreError:
        found = f"{answer.request.method} was answered {answer.status_code}"
        try:
            problem = answer.json()["errors"][0]
            found += f" ({problem.get('code')}: {problem.get('message')})"
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, httpx2.ResponseNotRead):
            pass
        if answer.status_code in {401, 403}:
            return StoreError(
                f"access was refused: {found}",
                where=self._where,
                fix=f"log in (`docker login {self._host}`, `skopeo login {self._host}`), "
                "and check that this account may read and write the repository",
            )
        return StoreError(found, where=self._where, fix="" if answer.status_code < 500 else "try again")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (httpx2.RequestError, httpx2.StreamError, httpx2.InvalidURL) as error:
            words = str(error) or type(error).__name__
            tls = "SSL" in words or "certificate" in words.lower()
            raise _BrokenError(
                words,
                where=self._where,
                fix="if this registry speaks plain HTTP, pass --plain-http" if tls else "check host and port",
            ) from None


class _BrokenError(StoreError):
    """The connection failed, and may not the next time."""


def _wait(answer: httpx2.Response, attempt: int) -> float:
    asked = answer.headers.get("Retry-After", "")
    return min(float(asked), _LONGEST_WAIT) if asked.isdecimal() else PATIENCE * 2**attempt
