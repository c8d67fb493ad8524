"""``engineroom estimate FILE.csv``: a table of configurations, and what each should reach."""

import csv
import difflib
import io
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engineroom import gpus
from engineroom.errors import EngineroomError, InputError
from engineroom.gpus import GpuClass, Precision
from engineroom.planning.batching import Workload
from engineroom.planning.capacity import DEFAULT_BATCH, DEFAULT_TOKENS
from engineroom.planning.estimator import Deployment, Estimator
from engineroom.planning.known_models import find_shape
from engineroom.planning.memory import Load
from engineroom.planning.parallelism import choose_experts, tensor_problem
from engineroom.planning.parameters import count_parameters
from engineroom.planning.plan import PlannedLimits
from engineroom.planning.throughput import offered, peak

NEEDED = ("model", "gpu", "precision", "tp", "isl", "osl")
ADDED = ("predicted_output_tok_s_total", "estimator", "band", "note")
ADDED_ONLINE = ("predicted_ttft_ms", "predicted_itl_ms")

#: A table of configurations; a longer file is something else.
MOST_BYTES = 64 << 20

#: Share of the memory left over that TensorRT-LLM gives the KV cache by default.
_FRACTION = 0.9

PRECISIONS: dict[str, Precision] = {
    "fp8": "fp8",
    "fp16": "float16",
    "float16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp4": "nvfp4",
    "nvfp4": "nvfp4",
    "int8": "int8",
    "w8a16": "int8",
    "int4": "int4",
    "w4a16": "int4",
    "int4_awq": "int4_awq",
    "awq": "int4_awq",
    "w4a16_awq": "int4_awq",
    "w4a8": "w4a8_awq",
    "w4a8_awq": "w4a8_awq",
}


@dataclass
class Table:
    """The file as it was read, with the columns that are added."""

    columns: list[str]
    rows: list[dict[str, str]]
    skipped: int = 0


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file. Raises InputError."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"it is larger than {MOST_BYTES >> 20} MiB", where=str(path), fix="cut it into parts")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(
            f"cannot read it ({error.strerror or error})", where=str(path), fix="give the path of a CSV file"
        ) from None
    except UnicodeDecodeError:
        raise InputError("it is not UTF-8 text", where=str(path), fix="save it as CSV in UTF-8") from None
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows = [{key: value or "" for key, value in row.items() if key is not None} for row in reader]
    except csv.Error as error:
        raise InputError(f"not valid CSV ({error})", where=str(path), fix="see `engineroom estimate --help`") from None
    columns = [name for name in reader.fieldnames or () if name]
    lowered = {name.strip().lower() for name in columns}
    if missing := [name for name in NEEDED if name not in lowered]:
        raise InputError(
            f"it has no column {', '.join(missing)}",
            where=str(path),
            fix=f"name the columns {', '.join(NEEDED)} in its first line (pp is optional)",
        )
    return columns, rows


def estimate_table(columns: list[str], rows: Iterable[dict[str, str]], estimators: list[Estimator]) -> Table:
    """Every row with its prediction, or with the reason why there is none."""
    online = any(name.strip().lower() == "qps_offered" for name in columns)
    added = [*ADDED[:-1], *(ADDED_ONLINE if online else ()), ADDED[-1]]
    table = Table([name for name in columns if name not in added] + added, [])
    for row in rows:
        facts = {name.strip().lower(): value.strip() for name, value in row.items()}
        try:
            found = _estimate(facts, estimators, online=online)
        except EngineroomError as error:
            table.skipped += 1
            found = {"note": "; ".join(part for part in (error.where, error.found, error.fix) if part)}
        table.rows.append({**row, **dict.fromkeys(added, ""), **found})
    return table


def write_csv(table: Table) -> str:
    """The table as CSV text, its columns first, then those that were added."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, table.columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.rows)
    return out.getvalue()


def _estimate(facts: dict[str, str], estimators: list[Estimator], *, online: bool) -> dict[str, str]:
    deployment, work = parse_row(facts)
    rate = _rate(facts.get("qps_offered", "")) if online else None
    load = offline_load(deployment, work)
    estimator = first_that_can(estimators, deployment)
    best = peak(estimator, deployment, load, work)
    if best is None:
        need = work.input_tokens + work.output_tokens
        raise InputError(
            f"it does not fit {deployment.world_size} × {deployment.gpu.name}: no room for one request of"
            f" {need} tokens beside the weights",
            where="memory",
            fix="use more GPUs, or a smaller precision",
        )
    speed = best.tokens_per_second
    found = {
        "predicted_output_tok_s_total": f"{speed:.2f}",
        "estimator": estimator.name,
        "band": f"{speed * best.band.low:.2f}..{speed * best.band.high:.2f}",
        "note": f"batch {best.batch}; {best.source}",
    }
    if work.input_tokens + work.output_tokens > deployment.shape.max_positions:
        found["note"] += f"; longer than the {deployment.shape.max_positions:,} positions of the model"
    if online:
        latency = offered(estimator, deployment, work, best, rate)
        found |= {"predicted_ttft_ms": f"{latency.ttft_ms:.1f}", "predicted_itl_ms": f"{latency.itl_ms:.2f}"}
        if latency.saturated:
            found["note"] += "; more is offered than it serves: latency of a whole batch that arrives at once"
    return found


def first_that_can(estimators: Iterable[Estimator], deployment: Deployment) -> Estimator:
    """The first estimator that has an answer. Raises InputError with the reasons of all."""
    problems = []
    for estimator in estimators:
        problem = estimator.problem(deployment)
        if problem is None:
            return estimator
        problems.append(f"{estimator.name}: {problem}")
    raise InputError("no estimator covers it", where=deployment.gpu.name, fix="; ".join(problems))


def parse_row(facts: dict[str, str]) -> tuple[Deployment, Workload]:
    """What a row describes. Raises InputError or CheckpointError, naming the column."""
    shape = find_shape(facts["model"])
    gpu = find_gpu(facts["gpu"])
    precision = _precision(facts["precision"])
    tp = _number("tp", facts["tp"], 64)
    pp = _number("pp", facts.get("pp", "") or "1", 64)
    work = Workload(_number("isl", facts["isl"], 1 << 20), _number("osl", facts["osl"], 1 << 20))
    if precision not in gpu.precisions:
        raise InputError(
            f"{gpu.name} has no {precision} in TensorRT-LLM", where="precision", fix=f"use {', '.join(gpu.precisions)}"
        )
    if problem := tensor_problem(shape, tp):
        raise InputError(problem, where="tp", fix="use a divisor of the heads")
    if pp > shape.layers:
        raise InputError(f"{pp} stages are more than the {shape.layers} layers", where="pp", fix="use fewer")
    experts = choose_experts(shape, "auto", tp)
    return Deployment(shape, gpu, precision, cache_type(precision, gpu), tp, pp, experts), work


def cache_type(precision: Precision, gpu: GpuClass) -> str:
    """Type of keys and values: fp8 with fp8 and fp4 weights (as in NVIDIA's own checkpoints), else 16 bit."""
    if precision in ("fp8", "nvfp4", "w4a8_awq") and int(gpu.sm or 0) >= 89:
        return "fp8"
    return "float16" if precision == "float16" else "bfloat16"


def offline_load(deployment: Deployment, work: Workload) -> Load:
    """Memory with TensorRT-LLM's default limits, for requests of this length."""
    limits = PlannedLimits(
        max_batch_size=DEFAULT_BATCH,
        max_input_len=work.input_tokens,
        max_output_len=work.output_tokens,
        max_seq_len=work.input_tokens + work.output_tokens,
        max_num_tokens=DEFAULT_TOKENS,
    )
    return Load(
        shape=deployment.shape,
        parameters=count_parameters(deployment.shape),
        runtime="tensorrt",
        precision=deployment.precision,
        kv_dtype=deployment.kv_dtype,
        limits=limits,
        fraction=_FRACTION,
        visible=deployment.gpu.visible_bytes,
    )


def find_gpu(name: str) -> GpuClass:
    """The class that a table means: ``H100``, ``H100-SXM``, ``NVIDIA A100 80GB`` … Raises InputError."""
    last: InputError | None = None
    for spelling in _spellings(name):
        try:
            return gpus.find(spelling, where="gpu")
        except InputError as error:
            last = last or error
    assert last is not None
    raise last


def _spellings(name: str) -> Iterator[str]:
    yield name
    plain = re.sub(r"[\s_]+", "-", name.strip().lower()).removeprefix("nvidia-")
    yield plain
    # Form factors and sizes that the plain class has anyway.
    shorter = re.sub(r"-?(sxm\d?|hgx|hbm3e?|80-?gb?|141-?gb?|180-?gb?|nvl72|tensor-core-gpu)\b", "", plain).strip("-")
    yield shorter
    near = difflib.get_close_matches(shorter, gpus.catalogue(), n=1, cutoff=0.95)
    yield from near


def _precision(text: str) -> Precision:
    plain = text.lower().replace("-", "_")
    if plain not in PRECISIONS:
        raise InputError(
            f"unknown precision {text[:40]!r}", where="precision", fix=f"use one of {', '.join(sorted(PRECISIONS))}"
        )
    return PRECISIONS[plain]


def _number(column: str, text: str, most: int) -> int:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value <= most or value != int(value):
        raise InputError(f"{text[:40]!r} is no whole number from 1 to {most}", where=column, fix="mend the row")
    return int(value)


def _rate(text: str) -> float | None:
    """Requests a second; None: unlimited."""
    if text.lower() in ("inf", "infinity", "unlimited", "+inf"):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise InputError(f"{text[:40]!r} is no rate", where="qps_offered", fix="give requests a second, or INF")
    return None if math.isinf(value) else value
