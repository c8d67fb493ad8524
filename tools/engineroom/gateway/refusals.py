"""What a client is told when it does not get its answer, in the form that OpenAI's clients read."""

import math
from http import HTTPStatus
from typing import Any

#: Reasons of ``engineroom_gateway_rejected_total``: every one is there from the start, at 0, for ``rate()``.
REASONS = (
    "bad_request",
    "unauthorized",
    "unknown_model",
    "not_found",
    "too_large",
    "queue_full",
    "draining",
    "upstream_busy",
    "upstream_unavailable",
    "upstream_error",
    "deadline",
    "slow_client",
    "internal",
)


class Refusal(Exception):  # noqa: N818  (it is an answer, not a failure)
    """An answer that is an error: one sentence, what it is about, and when to come again."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        reason: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """``reason`` is the metric's label; ``param`` and ``code`` are OpenAI's fields; ``retry_after`` in seconds."""
        super().__init__(message)
        assert reason in REASONS
        self.status = status
        self.message = message
        self.reason = reason
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def kind(self) -> str:
        """OpenAI's ``type`` of the error."""
        if self.status == HTTPStatus.UNAUTHORIZED:
            return "authentication_error"
        if self.status == HTTPStatus.TOO_MANY_REQUESTS:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that belong to it."""
        made = {}
        if self.status == HTTPStatus.UNAUTHORIZED:
            made["www-authenticate"] = "Bearer"
        if self.retry_after is not None:
            made["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        return made


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> Refusal:
    """The request itself cannot be served, now or later."""
    return Refusal(400, message, reason="bad_request", param=param, code=code)


def unsupported(param: str, why: str) -> Refusal:
    """A parameter that would change the answer and that nothing here honours."""
    return bad_request(f"{param} is not supported: {why}", param=param, code="unsupported_parameter")
