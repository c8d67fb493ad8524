"""Renders a checkpoint's chat template: the one place where messages become text.

Triton then gets the text with ``add_special_tokens`` false, because templates write the special tokens
themselves. Templates are Jinja in the dialect of Hugging Face's ``apply_chat_template``. They come with a
checkpoint, so they run in Jinja's sandbox, with bounds on loops, output and repeated strings; a checkpoint
that can waste a bounded second can still not read a file.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from engineroom.errors import CheckpointError, InputError
from engineroom.repository.record import BuildRecord

if TYPE_CHECKING:
    from jinja2 import Template

#: Templates of today have 1 to 20 KB.
MAX_TEMPLATE_CHARACTERS = 500_000
#: Above any context length that is served.
MAX_TEXT_CHARACTERS = 16_000_000
#: Turns of all loops of one rendering together.
MAX_TURNS = 1_000_000
MAX_SECONDS = 10.0

Message = Mapping[str, Any]


def render_chat(record: BuildRecord, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
    """The text that stands for ``messages`` (``{"role": …, "content": …}``) in the model's own format.

    Send it with ``Prompt.add_special_tokens=False``. Raises :class:`InputError` where the model has no
    template or its template refuses the messages, :class:`CheckpointError` where the template is broken.
    """
    source = record.model.chat_template
    if source is None:
        raise InputError(
            f"the model {record.name} has no chat template", where="chat", fix="ask without --chat, with plain text"
        )
    return render(source, messages, record.model.special_tokens, add_generation_prompt=add_generation_prompt)


def render(
    source: str,
    messages: Sequence[Message],
    special_tokens: Mapping[str, str],
    *,
    add_generation_prompt: bool = True,
) -> str:
    """Render a template's ``source``; raises as :func:`render_chat`."""
    from jinja2 import TemplateError, TemplateSyntaxError
    from jinja2.exceptions import SecurityError

    if len(source) > MAX_TEMPLATE_CHARACTERS:
        raise CheckpointError(f"has {len(source):,} characters", where="chat template", fix="give a shorter one")
    try:
        template, bounds = _compiled(source), _Bounds()
        pieces = template.generate(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            # Templates test them with "is not none", which an undefined name passes.
            tools=None,
            documents=None,
            bounded=bounds.turns,
            **special_tokens,
        )
        return "".join(bounds.text(pieces))
    except _RefusedError as error:
        raise InputError(str(error), where="chat template", fix="change the messages") from None
    except TemplateSyntaxError as error:
        raise CheckpointError(f"line {error.lineno}: {error.message}", where="chat template") from None
    except SecurityError as error:
        raise CheckpointError(f"does what it may not: {error}", where="chat template") from None
    except (RecursionError, MemoryError, OverflowError) as error:
        raise CheckpointError(f"does not end ({type(error).__name__})", where="chat template") from None
    # A template may meet any exception of Python on messages that it was not written for.
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError) as error:
        raise InputError(
            f"cannot render these messages ({error})", where="chat template", fix="change the messages"
        ) from None


class _RefusedError(Exception):
    """The template itself called ``raise_exception``."""


class _Bounds:
    """What one rendering may use."""

    def __init__(self) -> None:
        self._turns = MAX_TURNS
        self._until = time.monotonic() + MAX_SECONDS

    def turns(self, items: Iterable[Any]) -> Iterator[Any]:
        """``items``, as far as the bounds go. Wrapped around what every loop runs over."""
        from jinja2.exceptions import SecurityError

        for item in items:
            self._turns -= 1
            if self._turns < 0 or time.monotonic() > self._until:
                raise SecurityError("its loops do not end in reasonable time")
            yield item

    def text(self, pieces: Iterable[str]) -> Iterator[str]:
        """``pieces``, as long as they are not too many."""
        from jinja2.exceptions import SecurityError

        size = 0
        for piece in pieces:
            size += len(piece)
            if size > MAX_TEXT_CHARACTERS:
                raise SecurityError(f"it writes more than {MAX_TEXT_CHARACTERS:,} characters")
            yield piece


@lru_cache(maxsize=16)
def _compiled(source: str) -> "Template":
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks the assistant's words for training; here they are only rendered."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's interface

        def parse(self, parser: Parser) -> list[nodes.Node]:
            """The body, as it is."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Environment(ImmutableSandboxedEnvironment):
        """The sandbox with bounded loops and no repeated strings of any size."""

        intercepted_binops = frozenset(["*", "**"])

        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            tree = super()._parse(source, name, filename)
            for loop in list(tree.find_all(nodes.For)):
                loop.iter = nodes.Call(nodes.Name("bounded", "load"), [loop.iter], [], None, None)
            return tree

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" and (abs(left) > 1_000_000 or abs(right) > 100):
                raise SecurityError("it computes numbers too large")
            for value, times in ((left, right), (right, left)):
                repeated = operator == "*" and isinstance(value, str | list | tuple) and isinstance(times, int)
                if repeated and len(value) * times > MAX_TEXT_CHARACTERS:
                    raise SecurityError("it repeats a text too often")
            return super().call_binop(context, operator, left, right)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    # As transformers: JSON as json.dumps writes it, without HTML's escapes.
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda format_: datetime.now().strftime(format_)
    return environment.from_string(source)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise _RefusedError(message)
