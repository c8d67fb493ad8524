"""Values that no header and no config should hold, for tests that try thousands of combinations.

Hypothesis chooses seeds, and each seed makes many combinations: it takes milliseconds to invent a nested value, and
the code under test microseconds to refuse it.
"""

import random
from collections.abc import Iterator
from typing import Any

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 4, 8, 16, 64, 4096, 2**24, 2**24 + 1, 2**31, 2**62, 2**63, 2**64,
    2**200, -(2**70),
    0.0, -0.0, 0.5, 1e-5, 4.0, 1e308, -1e308, float("inf"), float("-inf"), float("nan"),
    "", "4", "U8", "BF16", "float32", "default", "llama3", "\n", "\0", "\ud800", "x" * 1000, "../../etc/passwd", "{}",
    [], [0], [4], [0, 4], [4, 0], [0, 0], [-1, 3], [0, 2**64], [0, 4.0], ["0", "4"], [True, True], [None, None],
    [[0], [4]],
    [1] * 20, [2**61] * 16, [[[[[[]]]]]], {}, {"a": 1}, {"factor": 2.0}, {"type": "linear", "factor": float("nan")},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": -1, "original_max_position_embeddings": 2**80},
    {"rope_type": 3, "factor": "8"}, {"quant_method": {"a": []}}, {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
    {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}, {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
    {"dtype": "U8", "shape": [0], "data_offsets": [2**61, 2**61]}, {"dtype": ["U8"], "shape": {}, "data_offsets": "04"},
]  # fmt: skip


def draws(seed: int, count: int = 20) -> Iterator[random.Random]:
    """``count`` sources of choices that depend on ``seed`` alone."""
    return (random.Random(f"{seed}/{number}") for number in range(count))
