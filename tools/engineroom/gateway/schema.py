"""The bodies of OpenAI's requests: which parameters are honoured, which are refused by name, what is inert.

A parameter that would change the answer and is not honoured is refused, never ignored. ``null`` means unset, as it
does at OpenAI.
"""

import json
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from engineroom.documents import first_problem
from engineroom.gateway.refusals import bad_request, unsupported

_NOT_HERE = "this server generates text from text"

#: Parameters of OpenAI's API that are not honoured: why, and the values that change nothing and are taken.
UNSUPPORTED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "audio": (_NOT_HERE, ()),
    "modalities": (_NOT_HERE, (["text"],)),
    "tools": ("this server renders no tools into prompts", ([],)),
    "tool_choice": ("this server renders no tools into prompts", ("none",)),
    "parallel_tool_calls": ("this server renders no tools into prompts", ()),
    "functions": ("this server renders no tools into prompts", ([],)),
    "function_call": ("this server renders no tools into prompts", ("none",)),
    "response_format": ('only {"type": "text"} is', ({"type": "text"},)),
    "logit_bias": ("no runtime of this server takes one", ({},)),
    "prediction": ("this server does not use predictions", ()),
    "reasoning_effort": ("the model has no such setting", ()),
    "verbosity": ("the model has no such setting", ()),
    "web_search_options": ("this server searches nothing", ()),
    "store": ("this server keeps nothing", (False,)),
    "metadata": ("this server keeps nothing", ({},)),
    "service_tier": ("there is one tier", ("auto", "default")),
    "prompt_cache_key": ("this server caches no prompts by key", ()),
    "suffix": ("text is generated after a prompt only", ("",)),
    "echo": ("an answer does not repeat its prompt", (False,)),
    "best_of": ("every answer is returned: use n", (1,)),
}

#: OpenAI's name of what a tensor stands for, where it is another.
_PARAMETERS = {
    "stop_words": "stop",
    "end_id": "ignore_eos",
    "add_special_tokens": "messages",
    "text_input": "prompt",
    "return_log_probs": "logprobs",
}

#: Fields of messages that clients send back with an answer of ours, where they are always empty.
_EMPTY_IN_MESSAGES = ("refusal", "annotations", "audio", "function_call", "tool_calls")


def _one_text(value: Any) -> Any:
    """``content`` as text: a list of text parts is joined."""
    if not isinstance(value, list):
        return value
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"a part of type {kind!r} is not supported: this server reads text only")
        if unknown := part.keys() - {"type", "text"}:
            raise ValueError(f"a part has the unknown key {min(unknown)!r}")
    return "".join(part["text"] for part in value)


def _texts(value: Any) -> Any:
    """One text or a list of them as a tuple."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list):
        if value and all(isinstance(each, int | list) for each in value):
            raise ValueError("token ids are not supported: send text")
        return tuple(value)
    return value


Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]


class StreamOptions(BaseModel):
    """``stream_options``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: Literal[False] = False
    """Padding against guesses of token lengths on the wire; this server adds none."""


class Body(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    n: int = Field(default=1, ge=1, le=128)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=2**31 - 1)
    """Not OpenAI's; -1 and 0 mean all tokens."""
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: Annotated[Texts, Field(max_length=16)] = ()
    presence_penalty: float = Field(default=0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0, ge=-2, le=2)
    repetition_penalty: float = Field(default=1, gt=0, le=2)
    """Not OpenAI's."""
    min_tokens: int = Field(default=0, ge=0, le=2**31 - 1)
    """Not OpenAI's."""
    ignore_eos: bool = False
    """Not OpenAI's: the answer goes on to its largest length. For measurements."""
    user: str | None = None
    """Inert; it goes into the log."""
    safety_identifier: str | None = None
    """Inert."""

    @property
    def length(self) -> int | None:
        """The largest number of tokens that the client wants; None: as many as fit."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many of the most probable tokens are wanted beside each token; None: no log probabilities at all."""
        raise NotImplementedError

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _options_of_streams(self) -> "Body":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for streams: set stream to true, or leave it out")
        return self


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_one_text)]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_empty_fields(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: given for key, given in value.items() if key not in _EMPTY_IN_MESSAGES or given not in (None, [])}

    def as_dict(self) -> dict[str, str]:
        """For the chat template."""
        # Templates know no developers: that is OpenAI's newer name for who was called system.
        made = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        return made | ({"name": self.name} if self.name is not None else {})


class ChatBody(Body):
    """``/v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)

    @property
    def length(self) -> int | None:
        """``max_completion_tokens``, or the older name of it."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """``top_logprobs``, where ``logprobs`` is set."""
        return self.top_logprobs if self.logprobs else None

    @model_validator(mode="after")
    def _top_of_logprobs(self) -> "ChatBody":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is for logprobs: set logprobs to true, or leave it out")
        return self


class TextBody(Body):
    """``/v1/completions``."""

    prompt: Annotated[Texts, Field(min_length=1, max_length=128)]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    """OpenAI's limit is 5."""

    @property
    def length(self) -> int | None:
        """``max_tokens``; 16 where it is not given, as at OpenAI."""
        return self.max_tokens or 16

    @property
    def alternatives(self) -> int | None:
        """``logprobs``: 0 is the chosen tokens alone."""
        return self.logprobs


def parameter_of(tensor: str) -> str:
    """OpenAI's parameter that a tensor of the served model stands for."""
    return _PARAMETERS.get(tensor, tensor)


Kind = TypeVar("Kind", bound=Body)


def read_body(kind: type[Kind], data: bytes) -> Kind:
    """A request's JSON. Raises :class:`~engineroom.gateway.refusals.Refusal`, naming the parameter."""
    try:
        fields = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        words = error.msg if isinstance(error, json.JSONDecodeError) else str(error) or "it is nested too deeply"
        raise bad_request(f"the body is not JSON: {words}", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise bad_request("the body is not a JSON object", code="invalid_json")
    if b"\\u" in data and _has_half_characters(fields):
        raise bad_request("the body holds half of a UTF-16 pair, which is no character", code="invalid_json")
    fields = {name: value for name, value in fields.items() if value is not None}
    for name in sorted(fields.keys() & UNSUPPORTED.keys()):
        why, harmless = UNSUPPORTED[name]
        if not any(_same(fields[name], value) for value in harmless):
            raise unsupported(name, why)
        del fields[name]
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        path, found = first_problem(error)
        if found == "unknown key":
            raise bad_request(
                f"{path} is not a parameter of this endpoint", param=path, code="unknown_parameter"
            ) from None
        code = "missing_required_parameter" if found == "missing" else "invalid_value"
        raise bad_request(f"{path}: {found}" if path else found, param=path or None, code=code) from None


def _same(value: Any, other: Any) -> bool:
    """Equal, and not as 0 and False are."""
    return type(value) is type(other) and value == other


def _has_half_characters(fields: Any) -> bool:
    """Whether a text has a lone surrogate: JSON can write it, UTF-8 and tokenizers cannot."""
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
