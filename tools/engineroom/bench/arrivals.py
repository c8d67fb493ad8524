"""When requests are sent, and how long they are: closed loop, Poisson, or a recorded trace."""

import csv
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from engineroom.errors import InputError

#: Columns of a trace, by what they may be called: the Azure LLM inference traces, and plain names.
_COLUMNS = {
    "time": ("TIMESTAMP", "arrived_at", "timestamp", "time"),
    "input": ("ContextTokens", "input_tokens", "prompt_tokens"),
    "output": ("GeneratedTokens", "output_tokens", "completion_tokens"),
}


@dataclass(frozen=True)
class Arrival:
    """One request to send."""

    at: float | None
    """Seconds after the start; None: as soon as one before it is answered (closed loop)."""
    input_tokens: int
    output_tokens: int


def closed(input_tokens: int, output_tokens: int, count: int | None) -> Iterator[Arrival]:
    """``count`` requests (None: without end), each sent when a client is free."""
    arrival = Arrival(None, input_tokens, output_tokens)
    return itertools.repeat(arrival) if count is None else itertools.repeat(arrival, count)


def poisson(
    rate: float, input_tokens: int, output_tokens: int, count: int | None, seconds: float | None, seed: int
) -> Iterator[Arrival]:
    """Independent arrivals at ``rate`` per second, whether or not the ones before are answered."""
    chance, at = random.Random(seed), 0.0  # noqa: S311 - not for secrets
    for _ in itertools.count() if count is None else range(count):
        at += chance.expovariate(rate)
        if seconds is not None and at > seconds:
            return
        yield Arrival(at, input_tokens, output_tokens)


def trace(path: Path, *, speed: float, count: int | None, seconds: float | None) -> Iterator[Arrival]:
    """The requests of a CSV file in the order of their times, ``speed`` times as fast.

    Times are seconds or ISO dates. Raises InputError with the line of what cannot be read.
    """
    rows = sorted(_rows(path))
    if not rows:
        raise InputError("it holds no requests", where=str(path))
    begin = rows[0][0]
    for at, input_tokens, output_tokens in rows[:count]:
        due = (at - begin) / speed
        if seconds is not None and due > seconds:
            return
        yield Arrival(due, input_tokens, output_tokens)


def _rows(path: Path) -> Iterator[tuple[float, int, int]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = {
                what: next((name for name in known if name in (reader.fieldnames or ())), None)
                for what, known in _COLUMNS.items()
            }
            for what, name in names.items():
                if name is None:
                    raise InputError(
                        f"no column for the {what}", where=str(path), fix=f"name one {' or '.join(_COLUMNS[what])}"
                    )
            for row in reader:
                try:
                    at = _seconds(row[names["time"]])
                    tokens = [int(row[names[what]]) for what in ("input", "output")]
                except (TypeError, ValueError):
                    at, tokens = math.nan, []
                if not math.isfinite(at) or min(tokens) < 0:
                    raise InputError(
                        f"{','.join(str(value) for value in row.values())[:80]!r} is no time and two numbers of tokens",
                        where=f"{path}:{reader.line_num}",
                    )
                # A request for no tokens is none that can be made.
                yield at, max(1, tokens[0]), max(1, tokens[1])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read it ({words})", where=str(path)) from None


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        # Traces of Azure have 7 digits of a second; Python reads 6.
        whole, dot, fraction = text.strip().partition(".")
        return datetime.fromisoformat(whole + dot + fraction[:6]).timestamp()


_COMMON = """
the of and to in is was for on that with as it by at from are this be an which or have had not but also all one two can
more other has were time world long city state year school life house music water river north small form part place
work side high light line land open point group number order power system word
"""
_WORDS = tuple(_COMMON.split())


def prompt_text(tokens: int, seed: int) -> str:
    """About ``tokens`` tokens of common words, each of which is one token to most tokenizers; different by ``seed``."""
    # A text, because -1 and 1 are the same seed.
    chance = random.Random(str(seed))  # noqa: S311 - not for secrets
    return " ".join(chance.choices(_WORDS, k=max(1, tokens)))
