"""Manifests that were read before, on this machine: a manifest never changes under its digest.

Each lies under its digest and is hashed when it is read, so what another process, a kill or a failing disk left of it
is simply not there. Nothing depends on it: a cache that cannot be written to is one that knows nothing.
"""

import hashlib
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

_DAY = 24 * 3600.0
#: What was not used for so long is removed by the next :meth:`ManifestCache.trim`.
UNUSED_SECONDS = 30 * _DAY


class ManifestCache:
    """The folder ``folder``, made when there is something to keep; shared by processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mine = secrets.token_hex(8)

    def get(self, blob: str) -> bytes | None:
        """The manifest with this SHA-256 (hexadecimal), where it is here and right."""
        path = self._path(blob)
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - for 10,000 of them, a Path costs more than the file
                data = file.read()
                used = os.fstat(file.fileno()).st_mtime
            if hashlib.sha256(data).hexdigest() != blob:
                os.unlink(path)  # noqa: PTH108
                return None
            if time.time() - used > _DAY:
                os.utime(path)
        except OSError:
            return None
        return data

    def put(self, blob: str, data: bytes) -> None:
        """Keep a manifest. Not synced: a power cut may cost it, and reading it shows that."""
        path, beside = self._path(blob), f"{self._folder}/{blob[:2]}/.{blob}-{self._mine}"
        with suppress(OSError):
            try:
                file = open(beside, "wb", buffering=0)  # noqa: PTH123, SIM115
            except FileNotFoundError:
                os.makedirs(f"{self._folder}/{blob[:2]}", exist_ok=True)  # noqa: PTH103
                file = open(beside, "wb", buffering=0)  # noqa: PTH123, SIM115
            with file:
                file.write(data)
            os.rename(beside, path)  # noqa: PTH104

    def trim(self) -> None:
        """Remove what was not used for :data:`UNUSED_SECONDS`, and what killed processes left."""
        with suppress(OSError):
            for folder, _, names in os.walk(self._folder):
                for name in names:
                    with suppress(OSError):
                        path, limit = Path(folder, name), _DAY if name.startswith(".") else UNUSED_SECONDS
                        if time.time() - path.stat().st_mtime > limit:
                            path.unlink()

    def _path(self, blob: str) -> str:
        return f"{self._folder}/{blob[:2]}/{blob}"
