"""How to reach a bucket: the settings of each cloud, from its own standard variables, as obstore finds them.

``s3://``
    ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``, ``AWS_REGION``, and ``AWS_ENDPOINT_URL``
    (or ``AWS_ENDPOINT_URL_S3``) for servers other than AWS, which are then addressed by path. Web identity and
    instance roles work; ``~/.aws`` is not read.
``gs://``
    ``GOOGLE_APPLICATION_CREDENTIALS``, ``GOOGLE_SERVICE_ACCOUNT``, or the metadata server. Untested: obstore uses the
    XML API, to whose uploads fake-gcs-server 1.56 answers 400, and there is no other emulator.
``az://``
    The location begins with the container; the account is ``AZURE_STORAGE_ACCOUNT_NAME``, with
    ``AZURE_STORAGE_ACCOUNT_KEY``, ``AZURE_STORAGE_SAS_TOKEN``, or a workload or managed identity;
    ``AZURE_STORAGE_ENDPOINT`` for an emulator.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, S3Store

    Client = S3Store | GCSStore | AzureStore


@dataclass(frozen=True)
class Settings:
    """What a user sets for a scheme, in the words of its errors."""

    credentials: str
    endpoint: str


SETTINGS = {
    "s3": Settings("AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL, AWS_REGION"),
    "gs": Settings("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_BASE_URL"),
    "az": Settings("AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ENDPOINT"),
}


def make_client(scheme: str, bucket: str, *, timeout: int, stall: int, retries: int, patience: int) -> "Client":
    """A client of a bucket or container; connects to nothing yet.

    ``timeout`` is for a whole request, ``stall`` for a silence within it, ``patience`` for all its retries (seconds).
    Raises what obstore raises where the settings are incomplete.
    """
    from obstore.store import AzureStore, GCSStore, S3Store

    def options(endpoint: str | None) -> Any:
        return {
            "client_options": {
                "allow_http": bool(endpoint and endpoint.startswith("http://")),
                "connect_timeout": timedelta(seconds=4),
                "timeout": timedelta(seconds=timeout),
                "read_timeout": timedelta(seconds=stall),
            },
            "retry_config": {"max_retries": retries, "retry_timeout": timedelta(seconds=patience)},
        }

    if scheme == "gs":
        return GCSStore(bucket, **options(None))
    if scheme == "az":
        endpoint = os.environ.get("AZURE_STORAGE_ENDPOINT")
        account: Any = {"endpoint": endpoint} if endpoint else {}
        return AzureStore(bucket, **account, **options(endpoint))
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    named: Any = {"endpoint": endpoint, "virtual_hosted_style_request": False} if endpoint else {}
    if not (endpoint and endpoint.startswith("http://")) and "AWS_UNSIGNED_PAYLOAD" not in os.environ:
        # TLS protects the bytes on the way, and costs their hash once less (as AWS's own clients do it).
        named["unsigned_payload"] = True
    return S3Store(bucket, **named, **options(endpoint))
