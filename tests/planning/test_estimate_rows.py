"""Tables of configurations, and what comes back."""

import csv
import io
import json
import os
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.checkpoint.shape import parse_shape
from engineroom.errors import EngineroomError, InputError
from engineroom.planning.aiconfigurator_estimator import MeasuredEstimator
from engineroom.planning.estimate_rows import Table, estimate_table, find_gpu, parse_row, read_table, write_csv
from engineroom.planning.known_models import find_shape
from engineroom.planning.roofline import RooflineEstimator

ESTIMATORS = [MeasuredEstimator(), RooflineEstimator()]
ROW = {"model": "Llama-3.1-8B", "gpu": "H100", "precision": "FP8", "tp": "1", "pp": "1", "isl": "500", "osl": "500"}


def estimated(*rows: dict[str, str]) -> Table:
    return estimate_table(list(rows[0]), rows, ESTIMATORS)


def test_a_row_comes_back_with_what_it_had_and_the_prediction() -> None:
    [row] = estimated({"source": "mine, with a comma", **ROW}).rows

    assert row["source"] == "mine, with a comma"
    assert 5_000 < float(row["predicted_output_tok_s_total"]) < 40_000
    low, high = (float(end) for end in row["band"].split(".."))
    assert low < float(row["predicted_output_tok_s_total"]) < high
    assert row["estimator"] == "aiconfigurator"


def test_a_missing_pp_is_one() -> None:
    without = {name: value for name, value in ROW.items() if name != "pp"}

    with_it, empty, left_out = (estimated(row).rows[0] for row in (ROW, ROW | {"pp": ""}, without))

    for row in (empty, left_out):
        assert row["predicted_output_tok_s_total"] == with_it["predicted_output_tok_s_total"]


def test_columns_are_found_whatever_their_case() -> None:
    [row] = estimated({name.upper(): value for name, value in ROW.items()}).rows

    assert row["predicted_output_tok_s_total"]


def test_an_offered_rate_gets_latencies_too() -> None:
    slow, fast, unlimited = (
        row for row in estimated(*(ROW | {"qps_offered": rate} for rate in ("1", "30", "INF"))).rows
    )

    for column in ("predicted_ttft_ms", "predicted_itl_ms"):
        assert 0 < float(slow[column]) < float(fast[column]) < float(unlimited[column])
    assert "whole batch that arrives at once" in unlimited["note"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model": "Lama-3.1-8B"}, "did you mean Llama-3.1-8B?"),
        ({"model": "/nowhere/config.json"}, "unknown model"),
        ({"gpu": "T4"}, "SM 75"),
        ({"gpu": "H1000"}, "unknown GPU class"),
        ({"precision": "fp9"}, "unknown precision"),
        ({"gpu": "A100"}, "a100 has no fp8"),
        ({"tp": "5"}, "32 attention heads cannot be split over 5 GPUs"),
        ({"pp": "999"}, "no whole number from 1 to 64"),
        ({"isl": "0"}, "no whole number"),
        ({"osl": "many"}, "no whole number"),
        ({"isl": "nan"}, "no whole number"),
        ({"model": "Llama-3.1-70B", "gpu": "L4"}, "does not fit 1 × l4"),
        ({"qps_offered": "soon"}, "no rate"),
        ({"qps_offered": "-1"}, "no rate"),
    ],
)
def test_a_row_without_an_estimate_says_why_and_does_not_stop_the_others(change: dict[str, str], why: str) -> None:
    rate = {"qps_offered": "1"}

    table = estimated(rate | ROW, rate | ROW | change, rate | ROW)

    assert why in table.rows[1]["note"]
    assert not table.rows[1]["predicted_output_tok_s_total"]
    assert table.skipped == 1
    assert table.rows[0] == table.rows[2]
    assert table.rows[2]["predicted_ttft_ms"]


@pytest.mark.parametrize(
    "name",
    ["Llama-3.1-8B", "llama 3.1 8b", "LLaMA-3.1-8B", "meta-llama/Meta-Llama-3.1-8B-Instruct",
     "llama-3.1-8b-instruct-fp8", "nvidia/Llama-3.1-8B-Instruct-FP8", "Llama_3.1_8B"],
)  # fmt: skip
def test_models_are_known_in_their_usual_spellings(name: str) -> None:
    assert find_shape(name) == find_shape("Llama-3.1-8B")


def test_a_model_may_be_the_path_of_its_config(checkout: Path) -> None:
    path = checkout / "tests" / "engines" / "configs" / "llama-3.1-70b"

    assert find_shape(str(path)) == find_shape(str(path / "config.json"))
    assert find_shape(str(path)).layers == 80


@pytest.mark.parametrize(
    ("name", "found"),
    [("H100", "h100"), ("H100-SXM", "h100"), ("NVIDIA H100 80GB HBM3", "h100"), ("A100-80GB", "a100"),
     ("h200_sxm", "h200"), ("B200", "b200"), ("GB200 NVL72", "gb200"), ("L40S", "l40s"), ("H100 NVL", "h100-nvl"),
     ("A100-SXM4-80GB", "a100")],
)  # fmt: skip
def test_cards_are_known_in_their_usual_spellings(name: str, found: str) -> None:
    assert find_gpu(name).name == found


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"))


@given(rows=st.lists(st.dictionaries(st.sampled_from(["model", "a,b", "note 2", 'q"']), TEXT), max_size=5))
def test_written_tables_read_back(rows: list[dict[str, str]]) -> None:
    columns = ["model", "a,b", "note 2", 'q"']
    full = [dict.fromkeys(columns, "") | row for row in rows]

    assert list(csv.DictReader(io.StringIO(write_csv(Table(columns, full)), newline=""))) == full


def test_a_file_without_the_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("model,gpu\nLlama-3.1-8B,H100\n")

    with pytest.raises(InputError, match="no column precision, tp, isl, osl"):
        read_table(path)
    path.write_text(",".join(ROW) + "\n")
    assert read_table(path) == (list(ROW), [])


@pytest.mark.parametrize("content", [b"\xff\xfe", b'model,gpu,precision,tp,isl,osl\n"open', b""])
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)

    with pytest.raises(InputError):
        read_table(path)


@given(facts=st.fixed_dictionaries({name: st.text(max_size=20) for name in ROW}))
def test_any_text_gives_a_row_or_a_reason(facts: dict[str, str]) -> None:
    try:
        parse_row(facts)
    except EngineroomError as error:
        assert error.found


def test_published_throughput_is_met_within_nine_percent() -> None:
    folder = os.environ.get("ENGINEROOM_REFERENCE_DATA")
    if folder is None:
        pytest.skip("ENGINEROOM_REFERENCE_DATA does not name the folder with trtllm_throughput.csv")
    table = estimate_table(*read_table(Path(folder) / "trtllm_throughput.csv"), ESTIMATORS)

    assert table.skipped == 0
    dense = [
        abs(float(row["predicted_output_tok_s_total"]) / float(row["output_tok_s_total"]) - 1)
        for row in table.rows
        if "x" not in row["model"]
    ]
    assert statistics.fmean(dense) < 0.09


def test_known_sizes_are_those_of_the_published_configs() -> None:
    published = json.loads(Path(__file__).with_name("reference").joinpath("configs.json").read_text())

    for name, config in published.items():
        if name == "mistralai/Mistral-7B-v0.1":  # the name means v0.3, which has no sliding window
            continue
        theirs, ours = parse_shape(config, where=name), find_shape(name)
        for field in ("layers", "heads", "kv_heads", "head_dim", "hidden_size", "intermediate_size", "vocab_size",
                      "max_positions", "tie_embeddings", "experts", "latent", "sliding_window", "family"):  # fmt: skip
            assert getattr(ours, field) == getattr(theirs, field), (name, field)
