"""How near the planner's estimates come to what was measured, and how long planning takes.

    make bench        # or: python tests/benchmarks/planning.py [--peer-rows 12]

Three sources of measurements, none of which any constant of the planner was fitted to, but for the width of the band:

- the runs in aiconfigurator-core's own `silicon_sample.csv` (inter-token latency at a given number of clients);
- tables of published throughput and latency, where $ENGINEROOM_REFERENCE_DATA names a folder with them;
- of the same rows, aiconfigurator's own answer in the same run, on as many rows as --peer-rows says.

A row without an estimate counts as 100 % error. Times are those of this machine, busy as it is.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engineroom import gpus
from engineroom.errors import EngineroomError
from engineroom.planning.aiconfigurator_database import systems_folder
from engineroom.planning.aiconfigurator_estimator import MeasuredEstimator
from engineroom.planning.aiconfigurator_times import SYSTEMS
from engineroom.planning.batching import Workload, run
from engineroom.planning.estimate_rows import estimate_table, offline_load, parse_row, read_table
from engineroom.planning.estimator import Estimator
from engineroom.planning.roofline import RooflineEstimator
from engineroom.planning.throughput import peak

Errors = dict[str, list[float]]


def main() -> None:
    """Print everything; needs a minute and a half, the peer's rows aside."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer-rows", type=int, default=6, help="rows that aiconfigurator itself is asked for")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = MeasuredEstimator(Path(folder))
        estimators: list[Estimator] = [measured, RooflineEstimator()]
        own_runs(measured)
        reference = os.environ.get("ENGINEROOM_REFERENCE_DATA")
        if reference is None:
            print("published tables: left out, as ENGINEROOM_REFERENCE_DATA names no folder with them")
        else:
            throughput(Path(reference) / "trtllm_throughput.csv", estimators, arguments.peer_rows)
            online(Path(reference) / "trtllm_online.csv", estimators)
        scaled()
        times(estimators)


def own_runs(measured: MeasuredEstimator) -> None:
    """The package's measured runs: predicted against measured time between tokens."""
    print("Time between tokens, runs of aiconfigurator-core's silicon_sample.csv (TensorRT-LLM, aggregated)")
    classes = {system: name for name, system in SYSTEMS.items()}
    ratios: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    with (systems_folder() / "silicon_sample.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            wanted = row["backend"] == "trtllm" and row["mode"] == "agg" and row["attention_dp_size"] in ("", "1")
            if not wanted or row["system"] not in classes:
                continue
            model = row["model_path"].rsplit("/", 1)[-1]
            facts = {
                "model": model,
                "gpu": classes[row["system"]],
                "precision": row["precision"] or row["gemm_quant_mode"] or "bf16",
            }
            facts |= {"tp": row["tp_size"], "isl": row["isl"], "osl": row["osl"]}
            key = f"{model} {facts['gpu']} {facts['precision']}"
            try:
                deployment, work = parse_row(facts)
            except EngineroomError:
                ratios[f"{key}: not planned by engineroom"].append((2.0, False))
                continue
            state = run(measured, deployment, work, batch=int(row["batch_size"]), max_num_tokens=8192)
            band, speed = measured.band(deployment), state.itl_ms / float(row["silicon_tpot_ms"])
            ratios[key].append((speed, band.low <= speed <= band.high))
    for key, found in sorted(ratios.items()):
        speeds = sorted(speed for speed, _ in found)
        error = statistics.fmean(abs(speed - 1) for speed in speeds)
        share = statistics.fmean(inside for _, inside in found)
        low, high = speeds[len(speeds) // 20], speeds[-1 - len(speeds) // 20]
        print(
            f"  {key:44} {len(found):4} runs  MAPE {100 * error:5.1f} %  measured/predicted speed, 5th to 95th "
            f"percentile {low:.2f} to {high:.2f}  in the band {100 * share:3.0f} %"
        )


def throughput(path: Path, estimators: list[Estimator], peer_rows: int) -> None:
    """Published maximum throughput against the estimates."""
    columns, rows = read_table(path)
    began = time.perf_counter()
    table = estimate_table(columns, rows, estimators)
    took = time.perf_counter() - began
    print(f"\nMaximum throughput, {path.name}: {len(rows)} rows in {took:.1f} s, {table.skipped} without an estimate")
    by: dict[str, Errors] = {name: defaultdict(list) for name in ("GPU", "model", "regime")}
    inside = []
    for row in table.rows:
        actual = float(row["output_tok_s_total"])
        predicted = float(row["predicted_output_tok_s_total"] or 0)
        error = predicted / actual - 1 if predicted else -1.0
        low, high = (float(end) for end in row["band"].split("..")) if row["band"] else (0.0, 0.0)
        inside.append(low <= actual <= high)
        dense = "experts" if "x" in row["model"] else "dense"
        by["GPU"][f"{row['gpu']}, TP {row['tp']}, {dense}"].append(error)
        by["model"][row["model"]].append(error)
        by["regime"][f"{_regime(row)}, {dense}"].append(error)
        by["regime"][f"all {dense}"].append(error)
        by["regime"]["all"].append(error)
    for name, groups in by.items():
        _print_errors(name, groups)
    print(f"  the band holds the truth in {100 * statistics.fmean(inside):.0f} % of the rows")
    if peer_rows:
        _peer([row for row in table.rows if "x" not in row["model"]], peer_rows)


def _regime(row: dict[str, str]) -> str:
    prompt, answer = int(row["isl"]), int(row["osl"])
    if prompt <= 256 and answer <= 256:
        return "short prompts, large batches"
    if prompt >= 4 * answer:
        return "mostly prompts"
    return "mostly answers" if answer >= 4 * prompt else "balanced"


def _peer(rows: list[dict[str, str]], count: int) -> None:
    """The search of aiconfigurator itself on the same rows, at its defaults."""
    import logging

    from aiconfigurator_core.sdk import common, perf_database
    from aiconfigurator_core.sdk.backends.factory import get_backend
    from aiconfigurator_core.sdk.config import ModelConfig, RuntimeConfig
    from aiconfigurator_core.sdk.models import get_model

    logging.disable(logging.WARNING)
    names = {"Llama-3.1-8B": "meta-llama/Meta-Llama-3.1-8B", "Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B"}
    chosen = [row for row in rows if row["model"] in names]
    chosen = chosen[:: max(1, len(chosen) // count)][:count]
    theirs, ours = [], []
    began = time.perf_counter()
    for row in chosen:
        database = perf_database.get_database(SYSTEMS[row["gpu"].lower()], "trtllm", "current")
        config = ModelConfig(
            tp_size=int(row["tp"]),
            gemm_quant_mode=common.GEMMQuantMode.fp8,
            moe_quant_mode=common.MoEQuantMode.fp8,
            kvcache_quant_mode=common.KVCacheQuantMode.fp8,
            fmha_quant_mode=common.FMHAQuantMode.fp8,
        )
        work = RuntimeConfig(isl=int(row["isl"]), osl=int(row["osl"]), ttft=1e9, tpot=1e9)
        actual = float(row["output_tok_s_total"])
        try:
            model = get_model(names[row["model"]], config, "trtllm")
            frame = get_backend("trtllm").find_best_agg_result_under_constraints(
                model, database, work, top_k=1, max_batch_size=512, ctx_stride=512
            )
            found = float(frame.get_summary_df()["tokens/s"].iloc[0])
        except Exception:  # whatever it raises: it has no answer, which counts as 100 %
            found = 0.0
        theirs.append(abs(found / actual - 1))
        ours.append(abs(float(row["predicted_output_tok_s_total"] or 0) / actual - 1))
    took = (time.perf_counter() - began) / max(1, len(chosen))
    print(
        f"  peer, {len(chosen)} dense Llama rows in the same run: aiconfigurator as it is"
        f" MAPE {100 * statistics.fmean(theirs):.1f} % at {took:.1f} s a row,"
        f" engineroom {100 * statistics.fmean(ours):.1f} %"
    )


def online(path: Path, estimators: list[Estimator]) -> None:
    """Published latency at an offered rate against the estimates."""
    columns, rows = read_table(path)
    table = estimate_table(columns, rows, estimators)
    groups: dict[str, Errors] = {"TTFT": defaultdict(list), "ITL": defaultdict(list)}
    for row in table.rows:
        kind = "unlimited rate (a whole batch at once)" if row["qps_offered"] == "INF" else "offered rate"
        for name, column in (("TTFT", "ttft_ms"), ("ITL", "itl_ms")):
            predicted = float(row[f"predicted_{column}"] or 0)
            groups[name][f"{row['gpu']}, {kind}"].append(predicted / float(row[f"mean_{column}"]) - 1)
    print(f"\nLatency at an offered rate, {path.name}: {len(rows)} rows, {table.skipped} without an estimate")
    for name, errors in groups.items():
        _print_errors(name, errors)


def scaled() -> None:
    """Classes that were measured, once as if they had not been: how good scaling from another card is."""
    print("\nScaling by data sheets: measured classes estimated from another card of their architecture")
    for name, donor in (("h200", "h100"), ("h100", "h200"), ("gb200", "b200"), ("b200", "gb200")):
        _scaled_pair(name, donor)


def _scaled_pair(name: str, donor: str) -> None:
    from engineroom.planning.aiconfigurator_curves import Curves
    from engineroom.planning.aiconfigurator_times import MeasuredTimes
    from engineroom.planning.estimator import Step, step_ms

    target, other = gpus.find(name), gpus.find(donor)
    curves = {SYSTEMS[each]: Curves(SYSTEMS[each], None) for each in (name, donor)}
    errors = []
    for model in ("llama-3.1-8b", "llama-3.1-70b"):
        for tp in (1, 4):
            facts = {"model": model, "gpu": name, "precision": "fp8", "tp": str(tp), "isl": "1000", "osl": "1000"}
            deployment, _ = parse_row(facts)
            for step in (Step(1, 1500), Step(64, 1500), Step(256, 1500), Step(64, 1500, 2, 1000)):
                own = step_ms(MeasuredTimes(target, target, curves), deployment, step)
                guess = step_ms(MeasuredTimes(target, other, curves), deployment, step)
                errors.append(guess / own - 1)
    print(
        f"  {name:6} from {donor:6} {len(errors)} steps, mean error {100 * statistics.fmean(map(abs, errors)):4.1f} %,"
        f" {100 * min(errors):+.0f} to {100 * max(errors):+.0f} %"
    )


def times(estimators: list[Estimator]) -> None:
    """How long planning takes: a first process, a later one, and estimates in this one."""
    print("\nTimes")
    command = [sys.executable, "-m", "engineroom", "plan", "--gpu", "all", "--model", "llama-3.1-70b"]
    command += ["--traffic", "10,1000,250", "--slo", "800,50", "--output", "json"]
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"ENGINEROOM_CACHE": cache}
        for what in ("first process ever", "later process", "later process"):
            began = time.perf_counter()
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            print(f"  plan --gpu all, 70B, {what}: {time.perf_counter() - began:.2f} s")
    facts = {"model": "llama-3.1-70b", "gpu": "h100", "precision": "fp8", "tp": "4", "isl": "1000", "osl": "1000"}
    deployment, work = parse_row(facts)
    warm = estimators[0]

    def one_state() -> Any:
        return run(warm, deployment, work, batch=64, max_num_tokens=8192)

    def one_peak() -> Any:
        return peak(warm, deployment, offline_load(deployment, work), work)

    for what, call in (("one batch size", one_state), ("the best of all that fit", one_peak)):
        call()
        print(f"  a warm estimate, {what}: {1000 * _seconds(call):.2f} ms")
    assert Workload(1000, 1000) == work


def _seconds(call: Any, repeats: int = 20) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


def _print_errors(name: str, groups: Errors) -> None:
    for group, errors in sorted(groups.items()):
        print(
            f"  {name:6} {group:42} n {len(errors):3}  MAPE {100 * _mape(errors):5.1f} %  "
            f"bias {100 * statistics.fmean(errors):+6.1f} %"
        )


def _mape(errors: Iterable[float]) -> float:
    return statistics.fmean(abs(error) for error in errors)


if __name__ == "__main__":
    main()
