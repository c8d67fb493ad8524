"""``gateway``: the OpenAI front end of a served model."""

import sys
from pathlib import Path

import click

from engineroom.cli.options import Finite
from engineroom.errors import InputError

_PREFIX = "ENGINEROOM_GATEWAY"


def need_gateway(where: str) -> None:
    """Raise InputError where the extra is not installed."""
    try:
        import engineroom.gateway.server  # noqa: F401 - it imports all that the extra brings
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed", where=where, fix="pip install 'engineroom[gateway]'"
        ) from None


@click.command("gateway", context_settings={"auto_envvar_prefix": _PREFIX})
@click.option("--tree", type=click.Path(path_type=Path), required=True, help="The pulled or assembled folder.")
@click.option("--upstream", default="127.0.0.1:8001", show_default=True, metavar="HOST:PORT", help="Triton's gRPC.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=9000, show_default=True, help="0: any free one.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=9002, show_default=True, help="0: any free one.")
@click.option("--model-name", metavar="NAME", help="What clients call the model; default: the build record's name.")
@click.option("--api-keys-file", type=click.Path(path_type=Path), help="One key a line; read again when it changes.")
@click.option("--slots", type=click.IntRange(1), help="Requests forwarded at a time; default: the engine's batch size.")
@click.option("--max-queued-requests", type=click.IntRange(0), help="One more is refused (429); default: 4 × slots.")
@click.option("--max-queued-tokens", type=click.IntRange(0), help="Of waiting prompts; default: slots × longest.")
@click.option("--max-body-bytes", type=click.IntRange(1024), default=4 << 20, show_default=True, help="Of a request.")
@click.option("--deadline-seconds", type=Finite(min=1), default=600, show_default=True, help="For a whole answer.")
@click.option("--drain-seconds", type=Finite(min=3), default=30, show_default=True, help="From SIGTERM to the end.")
@click.option(
    "--accept-seconds",
    type=Finite(min=0),
    default=5,
    show_default=True,
    help="Take new requests for so long after SIGTERM: a cluster needs some seconds to send them elsewhere.",
)
@click.option("--send-seconds", type=Finite(min=1), default=30, show_default=True, help="Until a slow reader is cut.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="debug also logs prompts.",
)
def gateway_command(log_level: str, upstream: str, **options: object) -> None:
    """Serve OpenAI's API for the model that Triton serves from the folder --tree.

    At most --slots requests are forwarded; others wait here, and too many are refused with the time after which to
    come again. GET /health/ready is 200 while the model takes requests; Prometheus metrics are on --metrics-port.
    On SIGTERM it is not ready at once, running answers end, and the port closes last.

    Each option is also an environment variable, such as ENGINEROOM_GATEWAY_API_KEYS_FILE.

    \b
    Example:
      engineroom serve .engineroom/served &
      engineroom gateway --tree .engineroom/served
    """  # noqa: D301
    host, colon, port = upstream.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 65536):
        raise InputError(f"{upstream!r} is not HOST:PORT", where="--upstream", fix="write --upstream 127.0.0.1:8001")
    need_gateway("engineroom gateway")
    from engineroom.gateway import logs, server
    from engineroom.gateway.settings import Settings

    logs.set_up(log_level)
    sys.exit(server.run(Settings(upstream=upstream, **options)))  # type: ignore[arg-type]  # click made their types
