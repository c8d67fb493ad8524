"""Who we are to a registry: credentials as Docker keeps them, and the tokens that they buy.

Looked for in this order, as ``skopeo`` and ``docker`` do: ``$REGISTRY_AUTH_FILE``, ``$DOCKER_CONFIG/config.json``,
``$XDG_RUNTIME_DIR/containers/auth.json``, ``~/.docker/config.json``. A Kubernetes secret of type
``kubernetes.io/dockerconfigjson``, mounted as ``config.json``, is such a file.

https://distribution.github.io/distribution/spec/auth/token/
"""

import base64
import binascii
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from engineroom.errors import StoreError

#: Docker Hub's own name in the files, for historical reasons.
_HUB = {"docker.io": "https://index.docker.io/v1/", "registry-1.docker.io": "https://index.docker.io/v1/"}
#: A token without ``expires_in`` lives 60 s (token specification); renewed a little before.
_LIFETIME, _MARGIN = 60, 10


@dataclass(frozen=True)
class Credentials:
    """User and password, or a refresh token."""

    user: str = ""
    password: str = ""
    identity_token: str = ""


def credentials_of(host: str) -> Credentials | None:
    """What the files say about ``host``; None for an anonymous client.

    Raises :class:`StoreError` where a file or a credential helper cannot be used.
    """
    names = [host, f"https://{host}", *([_HUB[host]] if host in _HUB else [])]
    for path in _files():
        try:
            config = json.loads(path.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read it ({error})", where=str(path), fix="log in again") from None
        if found := _in_config(config if isinstance(config, dict) else {}, names, path):
            return found
    return None


def _files() -> Iterator[Path]:
    if path := os.environ.get("REGISTRY_AUTH_FILE"):
        yield Path(path)
    if folder := os.environ.get("DOCKER_CONFIG"):
        yield Path(folder, "config.json")
    if folder := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(folder, "containers", "auth.json")
    yield Path("~/.docker/config.json").expanduser()


def _in_config(config: dict[str, Any], names: list[str], path: Path) -> Credentials | None:
    helpers = config.get("credHelpers")
    for name in names:
        own = helpers.get(name) if isinstance(helpers, dict) else None
        if isinstance(own, str):
            return _ask_helper(own, name)
    auths = config.get("auths")
    for name in names:
        entry = auths.get(name) if isinstance(auths, dict) else None
        if isinstance(entry, dict) and (found := _from_entry(entry, f"{path}: auths.{name}")):
            return found
    common = config.get("credsStore")
    if isinstance(common, str):
        for name in names:
            if found := _ask_helper(common, name):
                return found
    return None


def _from_entry(entry: dict[str, Any], where: str) -> Credentials | None:
    if isinstance(token := entry.get("identitytoken"), str) and token:
        return Credentials(identity_token=token)
    if isinstance(auth := entry.get("auth"), str) and auth:
        try:
            user, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            colon = ""
        if not colon:
            raise StoreError("'auth' is not the base64 of USER:PASSWORD", where=where, fix="log in again")
        return Credentials(user, password)
    name, secret = entry.get("username"), entry.get("password")
    return Credentials(name, secret) if isinstance(name, str) and isinstance(secret, str) else None


def _ask_helper(helper: str, name: str) -> Credentials | None:
    """https://github.com/docker/docker-credential-helpers: the server's name goes in, JSON comes out."""
    program = f"docker-credential-{helper}"
    if "/" in helper or not shutil.which(program):
        raise StoreError(f"{program} is not on PATH", where="the docker configuration", fix="install it, or log in")
    try:
        done = subprocess.run([program, "get"], input=name, capture_output=True, text=True, check=False, timeout=30)
        if done.returncode:
            return None  # it knows no such server
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (subprocess.TimeoutExpired, OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{program} gave no credentials ({error})", where=name, fix="log in again") from None
    return Credentials(identity_token=secret) if user == "<token>" else Credentials(user, secret)


class RegistryAuth(httpx2.Auth):
    """Answers a registry's challenge, Basic or Bearer, and keeps the token for each scope. Safe in threads."""

    def __init__(self, host: str, url: httpx2.URL) -> None:
        self._host = host
        self._netloc = url.netloc.decode()
        self._lock = threading.Lock()
        self._credentials: Credentials | None = None
        self._looked = False
        self._tokens: dict[str, tuple[float, str]] = {}

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Sends what is known already; on 401 asks for what the challenge wants, once."""
        if request.url.netloc.decode() != self._netloc:
            yield request  # where a registry sends its blobs from, or takes them: a signed URL, not for our token
            return
        scope = _scope(request)
        if header := self._known(scope):
            request.headers["Authorization"] = header
        answer = yield request
        if answer.status_code != 401:
            return
        challenge = answer.headers.get("WWW-Authenticate", "")
        kind, _, rest = challenge.partition(" ")
        fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        credentials = self._find()
        if kind.lower() == "basic" and credentials and credentials.user:
            self._keep(scope, _basic(credentials), 1e12)
        elif kind.lower() == "bearer" and fields.get("realm"):
            token = yield self._token_request(request, fields, credentials)
            if token.status_code != 200:
                return  # the caller sees the token service's refusal
            token.read()
            try:
                value = token.json()
                header = f"Bearer {value.get('token') or value['access_token']}"
                self._keep(scope, header, float(value.get("expires_in") or _LIFETIME))
            except (ValueError, KeyError, TypeError, AttributeError):
                return
        else:
            return
        request.headers["Authorization"] = self._known(scope) or ""
        yield request

    def _find(self) -> Credentials | None:
        with self._lock:
            if not self._looked:
                self._credentials, self._looked = credentials_of(self._host), True
            return self._credentials

    def _known(self, scope: str) -> str | None:
        with self._lock:
            until, header = self._tokens.get(scope, (0.0, ""))
        return header if time.monotonic() < until else None

    def _keep(self, scope: str, header: str, seconds: float) -> None:
        with self._lock:
            self._tokens[scope] = (time.monotonic() + max(seconds - _MARGIN, 1), header)

    def _token_request(
        self, request: httpx2.Request, fields: dict[str, str], credentials: Credentials | None
    ) -> httpx2.Request:
        realm = httpx2.URL(fields["realm"])
        if realm.scheme != "https" and request.url.scheme == "https":
            raise StoreError("its token service has no TLS", where=self._host, fix="tell who runs this registry")
        wanted = {name: fields[name] for name in ("service", "scope") if fields.get(name)}
        if credentials and credentials.identity_token:
            form = {**wanted, "grant_type": "refresh_token", "refresh_token": credentials.identity_token}
            return httpx2.Request("POST", realm, data={**form, "client_id": "engineroom"})
        headers = {"Authorization": _basic(credentials)} if credentials else {}
        return httpx2.Request("GET", realm.copy_merge_params(wanted), headers=headers)


def _scope(request: httpx2.Request) -> str:
    """What a token is kept for: a repository, to read or to write; one for writing serves both."""
    path = request.url.path
    repository = re.sub(r"/(?:blobs|manifests|tags)/.*", "", path)
    return f"{repository}:{'pull' if request.method in {'GET', 'HEAD'} else 'push'}"


def _basic(credentials: Credentials) -> str:
    return "Basic " + base64.b64encode(f"{credentials.user}:{credentials.password}".encode()).decode()
