"""The search over classes, precisions and splits, its report, and the plan's performance."""

import json
import os
import re
import socket
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from engineroom import gpus
from engineroom.gpus import GpuClass, Price
from engineroom.planning.estimator import Estimator
from engineroom.planning.known_models import find_shape
from engineroom.planning.memory import GIB
from engineroom.planning.parameters import count_parameters
from engineroom.planning.performance import estimators, with_performance, without_performance
from engineroom.planning.replica import plan_replica
from engineroom.planning.report import report
from engineroom.planning.roofline import RooflineEstimator
from engineroom.planning.search import Found, Question, pareto, search
from engineroom.recipe import Recipe, parse

TRAFFIC = {"requests_per_second": 5.0, "input_tokens": 1000, "output_tokens": 200}
SLO = {"ttft_ms": 800.0, "itl_ms": 50.0}
CLASSES = [gpu for gpu in gpus.catalogue().values() if not gpu.is_cpu]

#: Quick, and the same whatever is installed; what measured kernels add is tested with them.
ROOFLINE: list[Estimator] = [RooflineEstimator()]


def recipe(**keys: Any) -> Recipe:
    flat = {"model.source": "llama-3.1-70b", "gpu": "h100", "runtime": "tensorrt", "precision": "fp8"}
    return parse("{}", where="test", overrides=flat | {"traffic": TRAFFIC, "slo": SLO} | keys)


def searched(
    model: str = "llama-3.1-70b", classes: list[GpuClass] | None = None, **keys: Any
) -> tuple[Question, Found]:
    shape = find_shape(model)
    question = Question(shape, count_parameters(shape), recipe(**keys), CLASSES if classes is None else classes, None)
    return question, search(question, ROOFLINE)


@pytest.fixture(scope="module")
def found() -> Found:
    return searched()[1]


def test_every_class_is_there_with_what_fits_or_one_reason(found: Found) -> None:
    there = {one.deployment.gpu.name for one in found.candidates}
    refused = {failure.gpu for failure in found.failures if not failure.split}

    assert there | refused >= {gpu.name for gpu in CLASSES}
    assert all(failure.reason for failure in found.failures)


def test_nothing_that_is_said_to_fit_exceeds_memory(found: Found) -> None:
    for one in found.candidates:
        memory = one.memory
        assert memory.weights + memory.activations + memory.overhead + memory.kv == memory.total <= memory.visible
        assert one.slots >= 1
        assert one.batch <= one.slots


def test_the_feasible_come_first_and_need_ever_more_gpus(found: Found) -> None:
    order = ["feasible", "uncertain", "missed"]
    ranks = [order.index(one.verdict) for one in found.candidates]
    feasible = [one.gpus for one in found.candidates if one.verdict == "feasible"]

    assert ranks == sorted(ranks)
    assert feasible == sorted(feasible)
    assert found.ranked_by == "GPUs"


def test_replicas_serve_the_traffic_and_one_may_be_lost(found: Found) -> None:
    for one in found.candidates:
        if one.verdict == "feasible":
            assert one.replicas >= 2
            assert one.itl_ms <= SLO["itl_ms"]
            assert one.ttft_ms <= SLO["ttft_ms"]


def test_no_configuration_beats_one_on_the_front(found: Found) -> None:
    front = pareto(found.candidates)

    assert front
    for chosen in front:
        assert not any(
            one.tokens_per_second_and_gpu > chosen.tokens_per_second_and_gpu
            and one.tokens_per_second_and_user > chosen.tokens_per_second_and_user
            for one in found.candidates
        )


def test_prices_decide_where_every_class_has_one() -> None:
    def priced(name: str, dollars: float) -> GpuClass:
        price = Price(on_demand=dollars, spot=dollars / 2, source="the test's own list", date="2026-11-01")
        return gpus.find(name).model_copy(update={"price": price})

    _, cheap_l40s = searched("llama-3.1-8b", [priced("h100", 100.0), priced("l40s", 0.1)])
    _, cheap_h100 = searched("llama-3.1-8b", [priced("h100", 0.1), priced("l40s", 100.0)])

    assert cheap_l40s.ranked_by == cheap_h100.ranked_by == "dollars"
    assert cheap_l40s.candidates[0].deployment.gpu.name == "l40s"
    best = cheap_h100.candidates[0]
    assert best.deployment.gpu.name == "h100"
    assert best.cost
    # $/h over the tokens of an hour.
    assert best.cost.million_tokens == pytest.approx(best.gpus * 0.1 / (5 * 200 * 3600) * 1e6)
    assert best.cost.spot_hour == pytest.approx(best.cost.hour / 2)
    assert "2026-11-01" in best.cost.source


def test_a_model_that_is_too_large_says_how_much_it_needs() -> None:
    small = gpus.find("l4").model_copy(update={"visible_gib": 3.0})
    _, found = searched("llama-3.1-405b", [small])

    assert not found.candidates

    assert any(
        "GiB a GPU" in failure.reason or "fewer than one request" in failure.reason for failure in found.failures
    )


def test_a_promise_that_no_gpu_keeps_is_missed_with_its_reason() -> None:
    _, found = searched("llama-3.1-8b", [gpus.find("l4")], slo={"ttft_ms": 800.0, "itl_ms": 0.5})

    assert {one.verdict for one in found.candidates} == {"missed"}
    assert all("ITL" in one.reason and one.replicas == 0 for one in found.candidates)


def test_without_a_traffic_one_full_replica_is_looked_at() -> None:
    _, found = searched("llama-3.1-8b", [gpus.find("h100")], traffic=None, slo=None)

    assert {one.replicas for one in found.candidates} == {1}
    assert all(one.batch == one.slots for one in found.candidates)


def test_no_network_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    shape = find_shape("llama-3.1-8b")
    question = Question(shape, count_parameters(shape), recipe(), [gpus.find("h100"), gpus.find("l4")], ["fp8"])

    assert search(question, estimators(tmp_path)).candidates


def test_a_first_search_in_two_processes_finds_what_one_finds(tmp_path: Path) -> None:
    def ran(cache: str, classes: str) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "engineroom", "plan", "--gpu", classes, "--model", "llama-3.1-8b"]
        command += ["--traffic", "5,1000,200", "--precision", "bfloat16", "--output", "json"]
        environment = os.environ | {"ENGINEROOM_CACHE": str(tmp_path / cache)}
        result = subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True)
        found: list[dict[str, Any]] = json.loads(result.stdout)["configurations"]
        return sorted(found, key=lambda one: (one["gpu"], one["tp"]))

    shared = ran("shared", "a100,h100,l40s")  # three things to read: the first search takes a second process
    alone = [each for name in ("a100,", "h100,", "l40s,") for each in ran("alone", name)]

    assert [one | {"pareto": 0} for one in shared] == [one | {"pareto": 0} for one in alone]
    assert ran("shared", "a100,h100,l40s") == shared


class Page(HTMLParser):
    """What a page holds: its text, and everything that it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.loads, self.rows = "", [], 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.rows += tag == "tr"
        if tag in ("script", "link", "img", "iframe", "object"):
            self.loads.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_one_file_that_loads_nothing() -> None:
    question, found = searched("llama-3.1-8b")
    html = report(question, found)
    page = Page(html)

    assert page.loads == []
    assert not re.search(r"url\(|@import|https?:", html)
    assert page.rows == 2 + len(found.candidates) + len(found.failures) + sum(
        one.verdict == "missed" for one in found.candidates
    )
    for one in found.candidates:
        assert one.deployment.gpu.name in page.text
    kept = [one for one in found.candidates if one.verdict != "missed"]
    assert html.count("<circle") + html.count("<rect") == len(kept) > 0
    assert "the truth lies between 0.5 and 1.5 times" in page.text


def test_the_report_escapes_what_a_recipe_may_hold() -> None:
    question, found = searched("llama-3.1-8b", [gpus.find("h100")], **{"model.source": "<script>alert(1)</script>"})

    assert "<script" not in report(question, found)


def test_a_plan_says_what_its_replica_does() -> None:
    asked = recipe(**{"parallelism.tensor": 2})
    shape = find_shape("llama-3.1-70b")
    bare = plan_replica(asked, shape, parameters=count_parameters(shape))

    plan = with_performance(bare, asked, ROOFLINE)

    found = plan.performance
    assert found is not None
    assert found.verdict == "feasible"
    assert plan.replicas >= 2
    assert (found.traffic, found.slo) == (asked.traffic, asked.slo)
    assert found.decode_ms == sorted(found.decode_ms)
    by_context = [ms for batch, _, ms in found.decode_ms if batch == 64]
    assert by_context == sorted(by_context)
    # The longest answer at half of the speed: 1,024 tokens at twice the ITL of a full batch at least.
    assert plan.pod.drain_seconds is not None
    full = max(ms for batch, context, ms in found.decode_ms if batch <= 64 and context <= 4096)
    assert plan.pod.drain_seconds >= 1024 * full / 1000
    assert plan.price is None
    assert without_performance(plan) == bare


def test_a_plan_without_an_estimate_stays_as_it_is() -> None:
    shape = find_shape("llama-3.2-1b")
    asked = recipe(
        gpu="cpu", runtime="ctranslate2", precision="int8", limits={"max_batch_size": 1, "max_input_len": 512}
    )
    bare = plan_replica(asked, shape, parameters=GIB)

    assert with_performance(bare, asked, ROOFLINE) == bare
