"""Estimates from measured kernels, and from data sheets."""

import importlib.metadata
import json
from pathlib import Path

import pytest
from estimates import deployment
from hypothesis import given
from hypothesis import strategies as st

from engineroom import gpus
from engineroom.planning.aiconfigurator_curves import LENGTHS, TOKENS, Curves, curves_file, fastest_all_reduce
from engineroom.planning.aiconfigurator_database import RELEASE, Database
from engineroom.planning.aiconfigurator_estimator import MeasuredEstimator
from engineroom.planning.aiconfigurator_times import SYSTEMS, reference_for
from engineroom.planning.estimator import Step
from engineroom.planning.operators import AllReduce, Attention, Gemm, roofline_seconds
from engineroom.planning.roofline import RooflineEstimator

GEMM = Gemm(4096, 4096, "fp8", 1)
ATTENTION = Attention(32, 8, 128, "fp8", "fp8", 1)

#: One for all tests of this file: opening a system's measurements takes half a second.
MEASURED = MeasuredEstimator()
ROOFLINE = RooflineEstimator()


def test_the_database_is_of_the_release_that_is_spoken() -> None:
    assert importlib.metadata.version("aiconfigurator-core") == RELEASE


def test_curves_pass_through_the_measured_points(tmp_path: Path) -> None:
    database, curves = Database("h100_sxm"), Curves("h100_sxm", tmp_path)

    for tokens in (TOKENS[3], TOKENS[30], TOKENS[-1]):
        assert curves.token_ms(GEMM, tokens) == pytest.approx(database.token_ms(GEMM, tokens))
    for length in (LENGTHS[2], LENGTHS[9]):
        assert curves.prefill_ms(ATTENTION, 4, length) == pytest.approx(database.prefill_ms(ATTENTION, 4, length))
        assert curves.decode_ms(ATTENTION, 64, length) == pytest.approx(database.decode_ms(ATTENTION, 64, length))


def test_between_points_curves_stay_near_the_database() -> None:
    database, curves = Database("h100_sxm"), Curves("h100_sxm", None)

    for sequences, context in ((48, 1536), (200, 700), (3, 20_000)):
        asked = database.decode_ms(ATTENTION, sequences, context)
        assert curves.decode_ms(ATTENTION, sequences, context) == pytest.approx(asked, rel=0.15)


def test_a_later_run_reads_what_an_earlier_one_left(tmp_path: Path) -> None:
    first = Curves("h100_sxm", tmp_path)
    first.token_ms(GEMM, 100)
    first.save()
    file = curves_file(tmp_path, "h100_sxm")
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({key: [2 * value for value in values] for key, values in kept.items()}))

    later = Curves("h100_sxm", tmp_path)

    assert later.token_ms(GEMM, 100) == pytest.approx(2 * first.token_ms(GEMM, 100))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"gemm:4096:4096:fp8:0": "x"}', '{"gemm:4096:4096:fp8:0": []}'])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, content: str) -> None:
    file = curves_file(tmp_path, "h100_sxm")
    file.parent.mkdir(parents=True)
    file.write_text(content)

    curves = Curves("h100_sxm", tmp_path)
    found = curves.token_ms(GEMM, 64)
    curves.save()

    assert found > 0
    assert json.loads(file.read_text())["gemm:4096:4096:fp8:0"]


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "estimates").write_text("a file where a folder should be")
    curves = Curves("h100_sxm", tmp_path)
    curves.token_ms(GEMM, 64)

    curves.save()


def test_two_processes_keep_each_other_s_curves(tmp_path: Path) -> None:
    one, other = Curves("h100_sxm", tmp_path), Curves("h100_sxm", tmp_path)
    one.token_ms(GEMM, 64)
    other.token_ms(Gemm(512, 512, "fp8", 1), 64)
    one.save()
    other.save()

    assert len(json.loads(curves_file(tmp_path, "h100_sxm").read_text())) == 2


def test_the_all_reduce_over_pcie_is_one_that_pcie_can_do() -> None:
    # 2 × 7/8 of 128 Mi values of 2 bytes over a link of 32 GB/s; the package's table for this takes 214 ms.
    table = fastest_all_reduce("l40s", 8)
    took = dict(zip(table[::2], table[1::2], strict=True))[float(1 << 27)]
    best = 1000 * 2 * 7 / 8 * 2 * (1 << 27) / 32e9

    assert best < took < 3 * best
    assert Database("l40s").all_reduce_ms(AllReduce(8192, 8, 1), 16384) > 8 * took


@pytest.mark.parametrize("name", [name for name, gpu in gpus.catalogue().items() if not gpu.is_cpu])
def test_every_class_has_an_estimate_slower_than_its_data_sheet(name: str) -> None:
    gpu = gpus.find(name)
    precision = "fp8" if "fp8" in gpu.precisions else "bfloat16"
    here = deployment("llama-3.1-8b", name, precision)
    step = Step(16, 1000)
    bound = sum(
        roofline_seconds(gpu, operator.arithmetic, operator.flops(16), operator.traffic(16))
        for operator in (*here.work.tokens, here.work.logits)
    )

    assert MEASURED.problem(here) is None
    assert MEASURED.step_ms(here, step) > 1000 * bound
    assert ROOFLINE.step_ms(here, step) > 1000 * bound
    band, speed = ROOFLINE.band(here), ROOFLINE.step_ms(here, step) / MEASURED.step_ms(here, step)
    assert band.low <= speed <= band.high


def test_what_was_measured_is_taken_as_it_is_and_the_rest_is_scaled() -> None:
    for name in SYSTEMS:
        gpu = gpus.find(name)
        assert reference_for(gpu) == gpu
    assert "scaled to l4" in MEASURED.source(deployment(gpu="l4"))
    wide, narrow = MEASURED.band(deployment(gpu="l4")), MEASURED.band(deployment(gpu="l40s"))
    assert wide.low < narrow.low
    # A single answer is bound by reading the weights, so by bandwidth.
    slower = MEASURED.step_ms(deployment(gpu="l4"), Step(1, 500)) / MEASURED.step_ms(
        deployment(gpu="l40s"), Step(1, 500)
    )
    assert slower == pytest.approx(864 / 300, rel=0.1)


def test_a_class_of_an_unknown_architecture_falls_to_its_data_sheet() -> None:
    strange = gpus.find("h100").model_copy(update={"name": "future", "sm": "140"})
    here = deployment()
    other = type(here)(here.shape, strange, "fp8", "fp8")

    assert "SM 140" in str(MEASURED.problem(other))
    assert ROOFLINE.problem(other) is None


def test_no_estimate_for_processors() -> None:
    here = deployment()
    other = type(here)(here.shape, gpus.find("cpu"), "int8", "float32")

    assert "processors" in str(MEASURED.problem(other))
    assert "processors" in str(ROOFLINE.problem(other))


@given(
    batch=st.integers(1, 1024),
    more=st.integers(1, 1024),
    context=st.integers(64, 16_384),
    gpu=st.sampled_from(["h100", "l4"]),
)
def test_steps_grow_with_batch_and_context(batch: int, more: int, context: int, gpu: str) -> None:
    here = deployment(gpu=gpu)

    # Kernels for a larger batch are now and then a little quicker: tiles that fill better.
    step = MEASURED.step_ms(here, Step(batch, context))
    assert MEASURED.step_ms(here, Step(batch + more, context)) > 0.9 * step
    assert MEASURED.step_ms(here, Step(batch, context + more)) > 0.99 * step
    assert ROOFLINE.step_ms(here, Step(batch + more, context)) >= ROOFLINE.step_ms(here, Step(batch, context))
