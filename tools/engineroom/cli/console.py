"""What a person sees: progress on standard error, results on standard output as a table, JSON or YAML."""

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table

from engineroom.progress import Task

STDERR = Console(stderr=True, highlight=False)

#: Work shorter than this leaves no line in a log.
WORTH_A_LINE_SECONDS = 1.0
#: How often longer work of known size says in a log how far it is.
LOG_SECONDS = 30.0


class ConsoleProgress:
    """Progress bars on a terminal; in a log one line for each piece of work that took a while."""

    def say(self, text: str) -> None:
        """One line on standard error."""
        STDERR.print(f"  {text}", markup=False, soft_wrap=True)

    @contextmanager
    def task(self, title: str, total: int | None, *, unit: str = "B") -> Iterator[Task]:
        """A bar while the context is open."""
        start = time.monotonic()
        amount = [DownloadColumn(), TransferSpeedColumn()] if unit == "B" else [MofNCompleteColumn(), TextColumn(unit)]
        # Of work without a known end only the time that it has taken can be said.
        columns = [TimeElapsedColumn()] if total is None else [BarColumn(), *amount, TimeRemainingColumn()]
        with Bars(
            TextColumn("  {task.description}"),
            *columns,
            console=STDERR,
            transient=True,
            disable=not STDERR.is_terminal,
        ) as bars:
            if STDERR.is_terminal or unit != "B" or total is None:
                yield _Bar(bars, bars.add_task(title, total=total))
            else:
                yield _Log(title, total, self)
        seconds = time.monotonic() - start
        if seconds >= WORTH_A_LINE_SECONDS:
            moved = f"{gib(total)} in " if unit == "B" and total else ""
            rate = f", {gib(total / seconds)}/s" if moved and total else ""
            self.say(f"{title}: {moved}{seconds:.1f} s{rate}")


class _Bar:
    def __init__(self, bars: Bars, number: Any) -> None:
        self._bars, self._number = bars, number

    def advance(self, amount: int) -> None:
        self._bars.advance(self._number, amount)


class _Log:
    """Says from time to time how far it is, how fast, and how long the rest will take."""

    def __init__(self, title: str, total: int, progress: ConsoleProgress) -> None:
        self._title, self._total, self._progress = title, total, progress
        self._lock = threading.Lock()
        self._done, self._begin = 0, time.monotonic()
        self._next = self._begin + LOG_SECONDS

    def advance(self, amount: int) -> None:
        with self._lock:
            self._done += amount
            now = time.monotonic()
            if now < self._next:
                return
            self._next = now + LOG_SECONDS
            rate = self._done / (now - self._begin)
        left = f", {(self._total - self._done) / rate:.0f} s left" if rate > 0 else ""
        self._progress.say(f"{self._title}: {gib(self._done)} of {gib(self._total)}, {gib(rate)}/s{left}")


def emit(
    output: str,
    data: Any,
    *,
    rows: Sequence[Sequence[str]],
    header: Sequence[str] = (),
    after: Sequence[tuple[str, str]] = (),
) -> None:
    """Print ``data`` as JSON or YAML, or ``rows`` as a table, on standard output.

    With a ``header`` the rows are columns, wrapped in a narrow terminal; without one they are names and values,
    which are never cut or wrapped, so that a reference can be copied. ``after`` are such lines below a table.
    """
    if output == "json":
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    elif output == "yaml":
        import yaml

        click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)
    else:
        if header:
            _print_columns(rows, header)
        else:
            _print_values(rows)
        _print_values(after)


def _print_values(rows: Sequence[Sequence[str]]) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        click.echo(f"{click.style(name.ljust(width), bold=True)}  {value}")


def _print_columns(rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
    table = Table(*header, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*row)
    if sys.stdout.isatty():
        Console(highlight=False, markup=False).print(table)
        return
    # A pipe has no width: columns are then as wide as their text, so that `| grep` and `| cut` work.
    wide = sum(max(len(row[index]) for row in [header, *rows]) + 2 for index in range(len(header)))
    console = Console(highlight=False, markup=False, width=wide)
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def gib(size: float) -> str:
    """A size in bytes for a person: ``1.2 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:,.0f} B" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
