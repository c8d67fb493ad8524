"""The Hugging Face Hub, or a mirror: a revision resolved to a commit, its files listed, its refusals put into words.

The real client (``huggingface_hub``) builds requests, finds tokens and names errors. Its switches are read when it is
imported, so the endpoint is passed explicitly: ``HF_ENDPOINT`` counts when ``fetch`` runs.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from engineroom.checkpoint.source import COMMIT, HubSource, is_name
from engineroom.errors import EngineroomError, HubError, InputError

ENDPOINT = "https://huggingface.co"

#: Seconds between attempts after a failure that may pass: a reset, a timeout, HTTP 5xx.
PAUSES = (0.5, 1.0, 2.0, 4.0)
#: A rate limit that ends within this many seconds is waited for; a longer one is the user's to plan.
LONGEST_WAIT = 30
_TRUE = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub lists it."""

    path: str
    size: int
    """Bytes."""
    sha256: str | None
    """Of the content, where the file is stored outside git (LFS, Xet)."""
    git_sha1: str | None
    """Of the git blob, where it is stored in git."""


@dataclass(frozen=True)
class Listing:
    """One commit of a repository."""

    source: HubSource
    """What was asked for."""
    name: str
    """What the repository is called now: ``org/name``."""
    commit: str
    gated: bool
    entries: dict[str, Any] = field(repr=False)
    """What the client lists, by path; :meth:`Hub.describe` reads it."""


@dataclass(frozen=True)
class Hub:
    """A Hub and who asks. ``token`` None: the client's own (``HF_TOKEN``, or the file below ``HF_HOME``)."""

    endpoint: str
    token: str | None = field(repr=False)
    timeout: float
    """Seconds without a byte after which a request has failed."""

    @classmethod
    def from_environment(cls, token: str | None = None) -> "Hub":
        """The Hub that ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_DOWNLOAD_TIMEOUT`` name. Raises InputError."""
        # The client would otherwise ask the default Hub for a list of coding agents to put into its user agent: one
        # request more than the model needs, three seconds where there is no route (utils/_detect_agent.py in 2.4.0).
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        from huggingface_hub import get_token

        endpoint = (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
        if not re.fullmatch(r"https?://[A-Za-z0-9.\[\]:_-]+(/[!-~]*)?", endpoint):
            raise InputError("it is no http or https address", where=f"HF_ENDPOINT={endpoint}", fix=f"use {ENDPOINT}")
        token = token or get_token()
        if token and not re.fullmatch(r"[!-~]+", token):
            raise InputError("it holds characters that no token has", where="HF_TOKEN", fix="copy it again")
        seconds = os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or "10"
        if not re.fullmatch(r"[1-9][0-9]{0,5}", seconds):
            raise InputError(f"{seconds!r} is no number of seconds", where="HF_HUB_DOWNLOAD_TIMEOUT", fix="use 10")
        return cls(endpoint, token or None, float(seconds))

    def resolve(self, source: HubSource) -> Listing:
        """Which commit ``source`` means now, and its files. Raises HubError or InputError."""
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.endpoint, token=self.token or False)
        with quiet_client():
            info = self._patiently(
                source,
                lambda: api.model_info(
                    source.name, revision=source.revision, files_metadata=True, timeout=self.timeout
                ),
            )
            commit, siblings = info.sha, info.siblings
            if not isinstance(commit, str) or not COMMIT.fullmatch(commit) or not siblings:
                raise self._not_a_hub(source, "it lists no commit or no files")
            if source.is_pinned and commit != source.revision:
                raise self._not_a_hub(source, f"asked for {source.revision}, it answers {commit}")
            if not isinstance(info.id, str) or not is_name(info.id):
                raise self._not_a_hub(source, f"it calls the model {str(info.id)[:80]!r}")
        entries = {str(sibling.rfilename): sibling for sibling in siblings}
        return Listing(source, info.id, commit, bool(info.gated), entries)

    def describe(self, listing: Listing, path: str) -> RemoteFile:
        """Size and hash of a file of ``listing``. Raises HubError or InputError."""
        from huggingface_hub import get_hf_file_metadata

        entry = listing.entries[path]
        size, sha256, sha1 = entry.size, entry.lfs.sha256 if entry.lfs else None, None if entry.lfs else entry.blob_id
        if size is None or not (sha256 or sha1):
            # A mirror that lists names only: the headers of each file know the rest.
            url = self.url(listing, path)
            with quiet_client():
                known = self._patiently(
                    listing.source,
                    lambda: get_hf_file_metadata(
                        url, token=self.token or False, timeout=self.timeout, endpoint=self.endpoint
                    ),
                    gated=listing.gated,
                    path=path,
                )
            size, tag = known.size, known.etag or ""
            sha256, sha1 = (tag, None) if len(tag) == 64 else (None, tag)
        hashes = re.fullmatch(r"[0-9a-f]{64}", str(sha256 or "")) or re.fullmatch(r"[0-9a-f]{40}", str(sha1 or ""))
        if not isinstance(size, int) or size < 0 or not hashes:
            raise self._not_a_hub(listing.source, f"it gives no size and hash for {path[:80]!r}")
        return RemoteFile(path, size, sha256, sha1)

    def url(self, listing: Listing, path: str) -> str:
        """Where the content of the file ``path`` is."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(listing.name, path, revision=listing.commit, endpoint=self.endpoint)

    def headers(self) -> dict[str, str]:
        """Of every request for content."""
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not re-exported

        headers: dict[str, str] = build_hf_headers(token=self.token or False, library_name="engineroom")
        # Compressed content has no known length and cannot be resumed.
        return headers | {"accept-encoding": "identity"}

    def explain(self, error: Exception, source: HubSource, *, gated: bool = False, path: str = "") -> EngineroomError:
        """What the client's exception means, as ours: which file (``path``) of ``source`` was asked for, or none."""
        import httpx2
        from huggingface_hub import errors

        where = f"{source}: {path}" if path else str(source)
        page = f"{self.endpoint}/{source.name}"
        if isinstance(error, errors.HfHubHTTPError):
            status = error.response.status_code
            refused = status in (401, 403)
            where = str(source) if refused else where  # the model is refused, not this file of it
            if isinstance(error, errors.GatedRepoError) or (gated and refused):
                if self.token:
                    found = "the model is gated, and the account behind your token has no access"
                    return InputError(found, where=where, fix=f"ask for it at {page}, or set HF_TOKEN to another token")
                return InputError(
                    "the model is gated", where=where, fix=f"accept its licence at {page} and set HF_TOKEN"
                )
            if isinstance(error, errors.RevisionNotFoundError):
                fix = f"see {page}/tree/main for the branches and tags there are"
                return InputError(f"the model has no revision {source.revision!r}", where=where, fix=fix)
            if isinstance(error, errors.RepositoryNotFoundError) or (status == 404 and not path):
                return self._missing(where)
            if isinstance(error, errors.DisabledRepoError):
                return HubError("the Hub has disabled this model", where=where, fix=f"read {page}")
            if status == 401:
                if not self.token:
                    return self._missing(where)
                fix = f"set HF_TOKEN to a valid one from {self.endpoint}/settings/tokens, or unset it"
                return InputError("the Hub does not accept your token", where=where, fix=fix)
            if status == 403:
                fix = f"give it read access at {self.endpoint}/settings/tokens" if self.token else "set HF_TOKEN"
                return InputError("the Hub forbids it (HTTP 403)", where=where, fix=fix)
            if status == 404:
                return HubError("the Hub lists this file but does not have it", where=where, fix="try again later")
            if status == 429:
                seconds = retry_after(error.response.headers)
                fix = f"try again after {seconds} seconds" if seconds else "try again in a few minutes"
                fix += "" if self.token else ", or set HF_TOKEN, which raises the limit"
                return HubError(f"{self.endpoint} limits how often you may ask (HTTP 429)", where=where, fix=fix)
            if status >= 500:
                return HubError(
                    f"{self.endpoint} has a fault of its own (HTTP {status})", where=where, fix="try again later"
                )
            said = f": {error.server_message[:200]}" if error.server_message else ""
            return HubError(f"{self.endpoint} answers HTTP {status}{said}", where=where)
        if isinstance(error, httpx2.TimeoutException):
            found = f"{self.endpoint} sent nothing for {self.timeout:g} seconds"
            return HubError(found, where=where, fix="check the network, or raise HF_HUB_DOWNLOAD_TIMEOUT (seconds)")
        if isinstance(error, httpx2.ConnectError | httpx2.ProxyError):
            fix = "check the network, proxy and HF_ENDPOINT, or use a folder that holds the checkpoint"
            return HubError(f"cannot reach {self.endpoint} ({_reason(error)})", where=where, fix=fix)
        if isinstance(error, httpx2.TransportError):
            found = f"the connection to {self.endpoint} broke ({_reason(error)})"
            return HubError(found, where=where, fix="run it again: it goes on where it was")
        if isinstance(error, errors.OfflineModeIsEnabled):
            return offline(source)
        return self._not_a_hub(source, f"{type(error).__name__}: {str(error)[:120]}")

    def _missing(self, where: str) -> EngineroomError:
        fix = "check the name; without a token a private model looks the same, so set HF_TOKEN if it is one"
        if self.token:
            fix = "check the name, and whether your token may read it if it is private"
        return InputError(f"there is no such model on {self.endpoint}", where=where, fix=fix)

    def _not_a_hub(self, source: HubSource, found: str) -> EngineroomError:
        fix = "check HF_ENDPOINT" if self.endpoint != ENDPOINT else "try again later"
        return HubError(f"{self.endpoint} does not answer as a Hub does ({found})", where=str(source), fix=fix)

    def _patiently(self, source: HubSource, ask: Callable[[], Any], *, gated: bool = False, path: str = "") -> Any:
        import httpx2
        from huggingface_hub import errors

        for attempt in range(len(PAUSES) + 1):
            try:
                return ask()
            except (httpx2.HTTPError, httpx2.InvalidURL, errors.OfflineModeIsEnabled) as error:
                pause = pause_before_retry(error, attempt)
                if pause is None or isinstance(error, httpx2.ConnectError | httpx2.ProxyError):
                    raise self.explain(error, source, gated=gated, path=path) from None
            except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
                # The client trusts what it is sent: anything that is not the JSON of a Hub ends here.
                raise self._not_a_hub(source, f"{type(error).__name__}: {str(error)[:120]}") from None
            time.sleep(pause)
        raise AssertionError("unreachable: the last attempt has no pause")


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` (or ``TRANSFORMERS_OFFLINE``) forbids asking the Hub."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in _TRUE


def offline(source: HubSource) -> HubError:
    """Nothing in the cache, and the Hub may not be asked."""
    return HubError(
        "HF_HUB_OFFLINE is set, and the cache does not have it",
        where=str(source),
        fix="unset HF_HUB_OFFLINE, or fetch it once where there is a network",
    )


def pause_before_retry(error: Exception, attempt: int) -> float | None:
    """Seconds to wait before asking again after the failure number ``attempt`` (from 0); None: it is of no use."""
    import httpx2
    from huggingface_hub import errors

    if attempt >= len(PAUSES):
        return None
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status == 429:
            seconds = retry_after(error.response.headers)
            return None if seconds is None or seconds > LONGEST_WAIT else float(seconds)
        return PAUSES[attempt] if status == 408 or status >= 500 else None
    return PAUSES[attempt] if isinstance(error, httpx2.TransportError) else None


def retry_after(headers: Any) -> int | None:
    """Seconds that a rate limit lasts, from ``RateLimit`` (which the Hub sends) or ``Retry-After``."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # documented, not re-exported

    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return int(limit.reset_in_seconds)
    value = str(headers.get("retry-after", "")).strip()
    return int(value) if re.fullmatch(r"[0-9]{1,6}", value) else None


@contextmanager
def quiet_client() -> Iterator[None]:
    """Keep the client's own warnings off the terminal: what matters reaches the user as an error of ours."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _reason(error: Exception) -> str:
    import ssl

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            return f"its TLS certificate is not accepted: {seen.reason or seen}"
        seen = seen.__cause__ or seen.__context__
    text = re.sub(r"^\[Errno -?\d+\] ", "", str(error)).strip()
    return text[:1].lower() + text[1:160] if text else type(error).__name__
