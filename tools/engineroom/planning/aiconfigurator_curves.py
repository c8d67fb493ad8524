"""Measured times as curves over size, kept between runs in the user's cache.

Every operator is asked for once on a fixed grid of sizes; estimates read between the grid's points. So a plan of a
hundred configurations asks little, and one that was made before asks nothing: the curves of a system are one small JSON
file below ``estimates/<package and version>/`` of the cache. A damaged file, or one of another version, is made anew.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engineroom.documents import write_atomic
from engineroom.planning.aiconfigurator_database import DISTRIBUTION, RELEASE, Database, systems_folder
from engineroom.planning.operators import AllReduce, Attention, Elementwise, Experts, TokenOperator

#: Changes with anything below that changes what is in a file.
FORMAT = 1

#: Tokens in a step: every power of two and three points between (kernels go in waves, which a coarser grid would miss).
TOKENS = sorted(
    {1, 2, 3, *(base * quarter // 4 for base in (2**n for n in range(2, 15)) for quarter in (4, 5, 6, 7)), 32768}
)
PROMPTS = [2**n for n in range(0, 7)]
LENGTHS = [2**n for n in range(4, 18)]
SEQUENCES = [2**n for n in range(0, 12)]
CONTEXTS = [2**n for n in range(5, 18)]


def curves_file(cache: Path, system: str) -> Path:
    """Where the curves of a system are kept."""
    return cache / "estimates" / f"{DISTRIBUTION}-{RELEASE}-{FORMAT}" / f"{system}.json"


class Curves:
    """The curves of one system."""

    def __init__(self, system: str, cache: Path | None) -> None:
        """Read what an earlier run left in ``cache``; None: keep nothing."""
        self._database = Database(system)
        self._system = system
        self._file = curves_file(cache, system) if cache is not None else None
        self._known: dict[str, list[float]] = self._read()
        self._new = False
        self._keys: dict[Any, str] = {}

    def token_ms(self, operator: TokenOperator, tokens: float) -> float:
        """One of the operator's ``count``. Raises NoDataError."""
        values = self._curve(self._key(operator), lambda: [self._database.token_ms(operator, size) for size in TOKENS])
        return _linear(TOKENS, values, tokens)

    def prefill_ms(self, attention: Attention, prompts: float, length: float) -> float:
        """One layer. Raises NoDataError."""
        values = self._curve(
            self._key(attention) + ":prefill",
            lambda: [self._database.prefill_ms(attention, few, size) for few in PROMPTS for size in LENGTHS],
        )
        return _power(PROMPTS, LENGTHS, values, prompts, length)

    def decode_ms(self, attention: Attention, sequences: float, context: float) -> float:
        """One layer. Raises NoDataError."""
        values = self._curve(
            self._key(attention) + ":decode",
            lambda: [self._database.decode_ms(attention, few, size) for few in SEQUENCES for size in CONTEXTS],
        )
        return _power(SEQUENCES, CONTEXTS, values, sequences, context)

    def all_reduce_ms(self, operator: AllReduce, tokens: float, *, pcie: bool) -> float:
        """One sum over the ranks. Raises NoDataError.

        Over PCIe the tables of one card contradict each other: for 128 Mi values over 8 L40S one says 23 ms, others 214
        to 324, which is less than 1 GB/s and so a machine whose GPUs cannot reach each other. There the fastest
        measurement of the card, whoever took it, is what a machine in order does.
        """
        if not pcie:
            values = self._curve(
                f"all_reduce:{operator.hidden}:{operator.ranks}",
                lambda: [self._database.all_reduce_ms(operator, size) for size in TOKENS],
            )
            return _linear(TOKENS, values, tokens)
        ranks = next((few for few in (2, 4, 8) if few >= operator.ranks), 8)
        table = self._curve(f"pcie:{ranks}", lambda: fastest_all_reduce(self._system, ranks))
        sizes, times = table[::2], table[1::2]
        return _linear(sizes, times, tokens * operator.hidden)

    def save(self) -> None:
        """Write what was asked for the first time. A cache that cannot be written costs time, not results."""
        if not self._new or self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            # Another process may have written since: keep its curves too.
            write_atomic(self._file, json.dumps(self._read() | self._known).encode())
        except OSError:
            return
        self._new = False

    def _read(self) -> dict[str, list[float]]:
        if self._file is None:
            return {}
        try:
            data = json.loads(self._file.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(data, dict) or not all(_is_curve(values) for values in data.values()):
            return {}
        return data

    def _curve(self, key: str, ask: Callable[[], list[float]]) -> list[float]:
        values = self._known.get(key)
        if values is None:
            values = self._known[key] = ask()
            self._new = True
        return values

    def _key(self, operator: TokenOperator | Attention) -> str:
        key = self._keys.get(operator)
        if key is None:
            key = self._keys[operator] = _spell(operator)
        return key


def fastest_all_reduce(system: str, ranks: int) -> list[float]:
    """Values and milliseconds, in turn, of the fastest measured all-reduce of 16-bit values over ``ranks`` GPUs."""
    import pyarrow.parquet

    fastest: dict[int, float] = {}
    for file in sorted((systems_folder() / "data" / system / "comm").rglob("*.parquet")):
        if file.name not in ("custom_allreduce_perf.parquet", "nccl_perf.parquet"):
            continue
        rows = pyarrow.parquet.read_table(file).to_pylist()
        for row in rows:
            dtype = row.get("nccl_dtype") or row.get("allreduce_dtype")
            if row["num_gpus"] == ranks and row["op_name"] == "all_reduce" and dtype in ("half", "bfloat16", "float16"):
                size, time = int(row["message_size"]), float(row["latency"])
                fastest[size] = min(time, fastest.get(size, math.inf))
    # A larger message never takes less time: a smaller one that took longer met a disturbed machine.
    best, smooth = math.inf, []
    for size in sorted(fastest, reverse=True):
        best = min(best, fastest[size])
        smooth += [best, float(size)]
    return smooth[::-1]


def _spell(operator: TokenOperator | Attention) -> str:
    """What a curve depends on, and nothing else: the number of layers is multiplied in later."""
    if isinstance(operator, Elementwise):
        parts: list[Any] = ["elementwise", operator.bytes_per_token]
    elif isinstance(operator, Experts):
        parts = ["experts", operator.hidden, operator.intermediate, operator.experts, operator.chosen]
        parts += [operator.tensor, operator.parallel, operator.precision]
    elif isinstance(operator, Attention):
        parts = ["attention", operator.heads, operator.kv_heads, operator.head_dim, operator.kv_dtype]
        parts += [operator.arithmetic, operator.window, operator.latent]
    else:
        parts = ["gemm", operator.n, operator.k, operator.precision, int(operator.quantized_input)]
    return ":".join(str(part) for part in parts)


def _is_curve(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(value, (int, float)) for value in values)


def _linear(sizes: Sequence[float], values: Sequence[float], size: float) -> float:
    """Straight between points, and on beyond the last two."""
    index = min(max(bisect_right(sizes, size), 1), len(sizes) - 1)
    low, high = sizes[index - 1], sizes[index]
    if size <= low:
        return values[index - 1]
    return values[index - 1] + (values[index] - values[index - 1]) * (size - low) / (high - low)


def _power(rows: Sequence[int], columns: Sequence[int], values: Sequence[float], row: float, column: float) -> float:
    """Between points of a table as powers of both sizes: exact for what grows with a size or with its square."""
    first, row_share = _place(rows, row)
    second, column_share = _place(columns, column)
    width = len(columns)
    corners = [math.log(max(values[(first + i) * width + second + j], 1e-9)) for i in (0, 1) for j in (0, 1)]
    upper = corners[0] + (corners[1] - corners[0]) * column_share
    lower = corners[2] + (corners[3] - corners[2]) * column_share
    return math.exp(upper + (lower - upper) * row_share)


def _place(sizes: Sequence[int], size: float) -> tuple[int, float]:
    size = max(size, sizes[0])
    index = min(max(bisect_right(sizes, size), 1), len(sizes) - 1)
    low, high = sizes[index - 1], sizes[index]
    return index - 1, math.log(size / low) / math.log(high / low)
