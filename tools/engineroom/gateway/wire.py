"""The bytes of OpenAI's answers: whole, and as server-sent events."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii
from typing import Any, Literal

from engineroom.gateway.logprobs import Logprobs
from engineroom.gateway.upstream import Scored

Endpoint = Literal["chat", "text"]
Finish = Literal["stop", "length"]

DONE = b"data: [DONE]\n\n"
#: A comment, which clients skip: proxies end a connection on which nothing has moved for a while.
STILL_HERE = b": waiting\n\n"


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """OpenAI's token counts."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def event(data: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


@dataclass
class Writer:
    """Words one answer. What all its chunks share is made once: a chunk costs a few microseconds."""

    endpoint: Endpoint
    id: str
    model: str
    fingerprint: str
    with_usage: bool
    """Chunks then have ``usage``, null in all but the last."""
    logprobs: Logprobs | None = None
    """How log probabilities are worded, where they are wanted."""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self._head = b"data: " + json.dumps(self._frame(chunk=True), separators=(",", ":"))[:-1].encode()
        self._head += b',"choices":['
        self._tail = (b',"usage":null' if self.with_usage else b"") + b"}\n\n"

    def _frame(self, *, chunk: bool) -> dict[str, Any]:
        kinds = {"chat": ("chat.completion", "chat.completion.chunk"), "text": ("text_completion", "text_completion")}
        return {
            "id": self.id,
            "object": kinds[self.endpoint][chunk],
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def begin(self, index: int) -> bytes:
        """The chunk that opens an answer."""
        if self.endpoint == "text":
            return b""
        return self._chunk(index, '"delta":{"role":"assistant","content":"","refusal":null}', "null")

    def piece(self, index: int, text: str, scored: Sequence[Scored] = ()) -> bytes:
        """A chunk of text, and of the tokens that came with it."""
        # In ASCII: some clients take U+2028 and others, which JSON allows, for the end of a line.
        words = encode_basestring_ascii(text)
        content = f'"text":{words}' if self.endpoint == "text" else f'"delta":{{"content":{words}}}'
        if self.logprobs is None or not scored:
            return self._chunk(index, content, "null")
        return self._chunk(index, content, "null", json.dumps(self.logprobs.of(index, scored), separators=(",", ":")))

    def end(self, index: int, finish: Finish) -> bytes:
        """The chunk that closes an answer."""
        return self._chunk(index, '"text":""' if self.endpoint == "text" else '"delta":{}', f'"{finish}"')

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """The chunk of token counts, after all answers."""
        return event(self._frame(chunk=True) | {"choices": [], "usage": usage(prompt_tokens, completion_tokens)})

    def _chunk(self, index: int, content: str, finish: str, logprobs: str = "null") -> bytes:
        choice = f'{{"index":{index},{content},"logprobs":{logprobs},"finish_reason":{finish}}}]'
        return self._head + choice.encode() + self._tail

    def whole(
        self, answers: list[tuple[str, Finish, list[Scored]]], prompt_tokens: int, completion_tokens: int
    ) -> bytes:
        """The body of an answer that is not streamed."""
        choices = []
        for index, (text, finish, scored) in enumerate(answers):
            content: dict[str, Any] = {"text": text}
            if self.endpoint == "chat":
                content = {"message": {"role": "assistant", "content": text, "refusal": None}}
            logprobs = None if self.logprobs is None else self.logprobs.of(index, scored)
            choices.append({"index": index, **content, "logprobs": logprobs, "finish_reason": finish})
        return json.dumps(
            self._frame(chunk=False) | {"choices": choices, "usage": usage(prompt_tokens, completion_tokens)},
            separators=(",", ":"),
        ).encode()
