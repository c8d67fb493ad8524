"""NVIDIA's aiperf as the generator: the same load by another hand, for who trusts it more or wants to compare."""

import json
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engineroom.bench.report import PERCENTILES, Report
from engineroom.bench.targets import Shape
from engineroom.errors import CommandError, InputError

#: Its names of our measures. ITL between chunks, as ours, and not the mean of each answer.
_MEASURES = {"ttft": "time_to_first_token", "itl": "inter_chunk_latency", "e2e": "request_latency"}


@dataclass(frozen=True)
class Figures:
    """What aiperf reports of one measure, in milliseconds."""

    reported: dict[str, float]

    def at(self, percent: float) -> float | None:
        """A percentile in seconds, of those that it reports; None of others."""
        value = self.reported.get(f"p{percent:g}")
        return None if value is None else value / 1000

    def as_dict(self, scale: float = 1.0) -> dict[str, float | int | None]:
        """Count, mean, percentiles and extremes, as the other generator's."""
        names = {"count": "count", "mean": "avg", "min": "min", "max": "max"}
        names |= {f"p{percent}": f"p{percent}" for percent in PERCENTILES}
        found = {name: self.reported[key] for name, key in names.items() if key in self.reported}
        return {name: value if name == "count" else round(value * scale / 1000, 3) for name, value in found.items()}


@dataclass(frozen=True)
class Load:
    """What aiperf is asked for; ``None`` is left to it."""

    concurrency: int | None
    rate: float | None
    requests: int | None
    seconds: float | None
    input_tokens: int
    output_tokens: int
    warmup: int
    seed: int


def find_aiperf() -> str:
    """The program. Raises InputError where there is none."""
    program = shutil.which("aiperf")
    if program is None:
        raise InputError("aiperf is not installed", where="--tool", fix="pip install aiperf, and have it on PATH")
    return program


def command(
    program: str, url: str, shape: Shape, load: Load, tokenizer: Path, artifacts: Path, api_key: str | None
) -> list[str]:
    """The command line."""
    made = [
        program, "profile", "--url", url.rstrip("/").removesuffix("/v1"), "--model-names", shape.model,
        "--endpoint-type", shape.endpoint, "--streaming", "--tokenizer", str(tokenizer),
        "--synthetic-input-tokens-mean", str(load.input_tokens), "--synthetic-input-tokens-stddev", "0",
        "--output-tokens-mean", str(load.output_tokens), "--output-tokens-stddev", "0",
        "--extra-inputs", f"temperature:{shape.temperature:g}",
        "--random-seed", str(load.seed), "--request-timeout-seconds", f"{shape.timeout:g}",
        "--use-server-token-count", "--artifact-dir", str(artifacts), "--ui", "none",
    ]  # fmt: skip
    if shape.ignore_eos:
        made += ["--extra-inputs", "ignore_eos:true"]
    if load.concurrency is not None:
        made += ["--concurrency", str(load.concurrency)]
    if load.rate is not None:
        made += ["--request-rate", f"{load.rate:g}", "--arrival-pattern", "poisson"]
    if load.requests is not None:
        made += ["--request-count", str(load.requests)]
    if load.seconds is not None:
        made += ["--benchmark-duration", f"{load.seconds:g}"]
    if load.warmup:
        made += ["--warmup-request-count", str(load.warmup)]
    if api_key:
        made += ["--api-key", api_key]
    return made


def profile(url: str, shape: Shape, load: Load, tokenizer: Path, *, api_key: str | None = None) -> Report:
    """Run aiperf and read its report. Raises CommandError where it fails."""
    program = find_aiperf()
    with tempfile.TemporaryDirectory(prefix="engineroom-aiperf-") as folder:
        artifacts = Path(folder)
        done = subprocess.run(
            command(program, url, shape, load, tokenizer, artifacts, api_key),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        exported = artifacts / "profile_export_aiperf.json"
        if done.returncode != 0 or not exported.is_file():
            raise CommandError(
                f"aiperf ended with exit code {done.returncode}",
                where=program,
                tail=tuple(line for line in done.stdout.splitlines() if line.strip())[-15:],
            )
        return read(json.loads(exported.read_text(encoding="utf-8")))


def read(exported: dict[str, Any]) -> Report:
    """The report in aiperf's own JSON."""

    def number(name: str) -> float:
        return float(exported.get(name, {}).get("avg") or 0)

    errors: Counter[str] = Counter()
    for error in exported.get("error_summary") or []:
        details = error.get("error_details") or {}
        errors[str(details.get("type") or details.get("code") or "error")] += int(error.get("count", 1))
    whole = int(number("request_count"))
    return Report(
        sent=whole + sum(errors.values()),
        whole=whole,
        errors=errors,
        seconds=max(number("benchmark_duration"), 1e-9),
        input_tokens=int(number("total_usage_prompt_tokens") or number("total_isl")),
        output_tokens=int(number("total_usage_completion_tokens") or number("total_osl")),
        spreads={
            name: Figures({key: value for key, value in exported.get(theirs, {}).items() if key != "unit"})
            for name, theirs in _MEASURES.items()
        },
        late=None,
    )
