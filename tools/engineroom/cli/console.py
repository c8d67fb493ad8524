"""What a person sees: progress on standard error, results on standard output as a table, JSON or YAML."""

import json
import sys
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
            yield _Bar(bars, bars.add_task(title, total=total))
        seconds = time.monotonic() - start
        if seconds >= WORTH_A_LINE_SECONDS:
            self.say(f"{title}: {seconds:.1f} s")


class _Bar:
    def __init__(self, bars: Bars, number: Any) -> None:
        self._bars, self._number = bars, number

    def advance(self, amount: int) -> None:
        self._bars.advance(self._number, amount)


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
