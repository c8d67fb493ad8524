"""A token service as registries name them in their challenge: it signs what the registry checks.

https://distribution.github.io/distribution/spec/auth/token/ and …/jwt/
"""

import base64
import datetime
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

SERVICE, ISSUER = "the registry of the tests", "the token service of the tests"
#: Who may do what, by the header that Basic authentication makes; and by refresh token.
RIGHTS = {"writer:secret": {"pull", "push", "delete"}, "reader:secret": {"pull"}}
REFRESH = {"of-the-writer": "writer:secret"}


class TokenService:
    """Its port, its certificate, and what it was asked for."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, ISSUER)])
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = made.public_bytes(serialization.Encoding.PEM)
        self._der = made.public_bytes(serialization.Encoding.DER)
        self.asked: list[tuple[str, str]] = []
        """Method and scope of each request that was granted something."""
        self.port = 0

    def settings(self, folder: Path) -> dict[str, object]:
        """What a registry has below ``auth``."""
        (folder / "tokens.pem").write_bytes(self.certificate)
        realm = f"http://127.0.0.1:{self.port}/token"
        return {
            "token": {
                "realm": realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(folder / "tokens.pem")
            }
        }  # fmt: skip

    def token(self, who: str, scopes: list[str]) -> str:
        """A signed token with those of the scopes' actions that ``who`` has."""
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": sorted(RIGHTS[who] & set(actions.split(",")))})
        now = int(time.time())
        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(self._der).decode()]}
        claims = {
            "iss": ISSUER, "sub": who, "aud": SERVICE, "exp": now + 300, "nbf": now - 10, "iat": now,
            "jti": secrets.token_hex(8), "access": access,
        }  # fmt: skip
        text = ".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
        r, s = decode_dss_signature(self._key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextmanager
def token_service() -> Iterator[TokenService]:
    """One that runs on 127.0.0.1."""
    service = TokenService()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, _, secret = self.headers.get("Authorization", "").partition(" ")
            who = base64.b64decode(secret).decode() if kind == "Basic" else ""
            self._answer(who, parse_qs(urlsplit(self.path).query), "token")

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            who = REFRESH.get(form["refresh_token"][0], "") if form["grant_type"] == ["refresh_token"] else ""
            self._answer(who, form, "access_token")

        def _answer(self, who: str, asked: dict[str, list[str]], name: str) -> None:
            answer: dict[str, Any] = {"details": "who are you?"}
            known = who in RIGHTS and asked.get("service") == [SERVICE]
            if known:
                scopes = " ".join(asked.get("scope", [])).split()
                service.asked += [(self.command, scope) for scope in scopes]
                answer = {name: service.token(who, scopes), "expires_in": 300}
            body = json.dumps(answer).encode()
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
