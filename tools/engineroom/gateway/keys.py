"""API keys from a file, such as a mounted secret: one a line, read again when it changes."""

import hashlib
import hmac
import logging
import time
from pathlib import Path

from engineroom.errors import InputError

LOG = logging.getLogger("engineroom.gateway")

#: Between two looks at the file. Kubernetes itself takes up to a minute to bring a changed secret into a pod.
LOOK_SECONDS = 1.0


class ApiKeys:
    """The keys that are good now."""

    def __init__(self, path: Path) -> None:
        """Read ``path``. Raises InputError where that fails or it holds no key."""
        self._path = path
        self._looked = time.monotonic()
        try:
            self._stamp = self._look()
            self._digests = self._read()
        except (OSError, UnicodeDecodeError) as error:
            words = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise InputError(f"cannot read the API keys ({words})", where=str(path)) from None
        if not self._digests:
            raise InputError("it holds no API key", where=str(path), fix="write one key a line")

    def allow(self, authorization: str | None) -> bool:
        """Whether a header ``Authorization: Bearer KEY`` holds a good key."""
        self._refresh()
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        # Digests have one length, and all are compared: the time tells neither how much of a key was right nor which.
        good = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(good)

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        try:
            stamp = self._look()
            if stamp == self._stamp:
                return
            self._digests = self._read()
            self._stamp = stamp
        except (OSError, UnicodeDecodeError) as error:
            # A file that is being replaced: the keys of before stay good until there are new ones.
            facts = {"file": str(self._path), "error": str(error)}
            LOG.warning("cannot read the API keys again", extra={"facts": facts})
            return
        LOG.info("read the API keys again", extra={"facts": {"file": str(self._path), "keys": len(self._digests)}})

    def _look(self) -> tuple[int, int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> list[bytes]:
        lines = (line.strip() for line in self._path.read_text(encoding="utf-8").splitlines())
        return [hashlib.sha256(line.encode()).digest() for line in lines if line and not line.startswith("#")]
