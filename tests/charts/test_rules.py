"""Recording rules and alerts, evaluated by Prometheus' own promtool over series: firing and quiet."""

import itertools
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import prometheus_series as series
import pytest
import scenarios
import yaml
from prometheus_series import Series

pytestmark = pytest.mark.local

Render = Callable[..., list[dict[str, Any]]]
AFTER = "20m"
"""When alerts are looked at: behind the longest `for` of a severe one."""
LONG_AFTER = "35m"
"""The same for those of severity info."""
PLATFORM = scenarios.ROOT / "charts" / "gpu-platform"
MINE = 'namespace="models",service="llm-engineroom"'


@pytest.fixture(scope="session")
def promtool() -> Path:
    """Without it there is nothing to test with: CI fails, a laptop skips and is told why."""
    cached = scenarios.program("promtool")
    if cached is None:
        reason = "no promtool on this machine: run ci/install-promtool"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return cached


@dataclass
class Rules:
    """The rule file of one rendering, and what promtool finds in it."""

    promtool: Path
    folder: Path
    groups: list[dict[str, Any]]
    tests: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self.groups for rule in group["rules"]]

    @property
    def alerts(self) -> list[dict[str, Any]]:
        return [rule for rule in self.rules if "alert" in rule]

    def expect_alerts(self, about: Series, expected: dict[str, list[dict[str, str]]], after: str = AFTER) -> None:
        """Over these series, each alert named fires once for each of the label sets, which its rule's are added to."""
        self.tests.append(
            {
                "interval": f"{series.SECONDS}s",
                "input_series": [{"series": name, "values": values} for name, values in about.items()],
                "alert_rule_test": [
                    {
                        "eval_time": after,
                        "alertname": alert,
                        "exp_alerts": [self._fired(alert, labels) for labels in fired],
                    }
                    for alert, fired in expected.items()
                ],
            }
        )

    def expect_values(self, about: Series, expected: dict[str, float], labels: str | None = None) -> None:
        """Over these series, each expression has this one value."""
        self.tests.append(
            {
                "interval": f"{series.SECONDS}s",
                "input_series": [{"series": name, "values": values} for name, values in about.items()],
                "promql_expr_test": [
                    {
                        "expr": expression,
                        "eval_time": AFTER,
                        "exp_samples": [{"labels": "{}" if labels is None else labels, "value": value}],
                    }
                    for expression, value in expected.items()
                ],
            }
        )

    def expect_nothing(self, about: Series, expression: str) -> None:
        self.expect_values(about, {expression: 0})
        self.tests[-1]["promql_expr_test"][0]["exp_samples"] = []

    def check(self) -> None:
        """Run all expectations at once: starting promtool takes longer than the tests."""
        assert self.tests
        # Promtool evaluates each group as often as it says, whatever the interval of the samples.
        for group in self.groups:
            group.pop("interval", None)
        rules, tests = self.folder / "rules.yaml", self.folder / "tests.yaml"
        rules.write_text(yaml.safe_dump({"groups": self.groups}), encoding="utf-8")
        plan = {"rule_files": [str(rules)], "evaluation_interval": f"{series.SECONDS}s", "tests": self.tests}
        tests.write_text(yaml.safe_dump(plan), encoding="utf-8")
        command = [str(self.promtool), "test", "rules", str(tests)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def _fired(self, alert: str, labels: dict[str, str]) -> dict[str, Any]:
        [rule] = [
            rule
            for rule in self.alerts
            if rule["alert"] == alert
            and all(rule["labels"].get(name, value) == value for name, value in labels.items())
        ]
        return {"exp_labels": {**rule["labels"], **labels}, "exp_annotations": rule["annotations"]}


@pytest.fixture
def rules_of(render: Render, promtool: Path, tmp_path: Path) -> Callable[..., Rules]:
    def rendered(values: str, **overrides: Any) -> Rules:
        items = render(values, **overrides)
        for item in items:
            if item["kind"] == "PrometheusRule":
                return Rules(promtool, tmp_path, item["spec"]["groups"])
            if item["kind"] == "ConfigMap" and "rules.yaml" in item["data"]:
                return Rules(promtool, tmp_path, yaml.safe_load(item["data"]["rules.yaml"])["groups"])
        raise AssertionError(f"{values} renders no rules")

    return rendered


RulesOf = Callable[..., Rules]

# Values for each runtime. The engine of a rule set never matters to the alerts but through its table of signals.
RUNTIMES: dict[str, dict[str, Any]] = {
    "tensorrt": {},
    "pytorch": {"model": {"runtime": "pytorch"}},
    "ctranslate2": {"model": {"runtime": "ctranslate2"}, "gpu": {"perNode": 0, "products": []}},
}


def test_every_rule_file_is_valid_for_prometheus(
    shipped: dict[str, list[dict[str, Any]]], promtool: Path, tmp_path: Path
) -> None:
    files = []
    for values, items in shipped.items():
        for item in items:
            if item["kind"] == "PrometheusRule":
                files.append(tmp_path / f"{values}.yaml")
                files[-1].write_text(yaml.safe_dump(item["spec"]), encoding="utf-8")
            elif item["kind"] == "ConfigMap" and "rules.yaml" in item["data"]:
                files.append(tmp_path / f"{values}.yaml")
                files[-1].write_text(item["data"]["rules.yaml"], encoding="utf-8")
    assert len(files) >= 3

    command = [str(promtool), "check", "rules", "--lint-fatal", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_alert_of_severity_warning_fires_for_a_saturated_server_that_is_healthy(
    runtime: str, rules_of: RulesOf
) -> None:
    rules = rules_of("signals-values", **RUNTIMES[runtime])
    severe = {rule["alert"] for rule in rules.alerts if rule["labels"]["severity"] != "info"}
    assert len(severe) >= 10

    about = series.healthy(runtime)
    rules.expect_alerts(about, {alert: [] for alert in severe})
    # The series are those that the rules read: all of them have a value, and the server is saturated.
    rules.expect_values(
        about,
        {
            f"sum(engineroom:requests_running:sum{{{MINE}}} / engineroom:requests_slots:sum)": 1,
            f"sum(engineroom:requests_waiting:sum{{{MINE}}} / engineroom:replicas:count)": 5,
            f"sum(engineroom:kv_used_ratio:max{{{MINE}}})": 0.97,
            "count(engineroom:ttft_seconds:p95 > 0.1 < 0.2)": 1,
            "count(engineroom:itl_seconds:p95 > 0.025 < 0.05)": 1,
        },
    )
    if runtime != "ctranslate2":
        rules.expect_alerts(about, {"EngineroomGpuSaturated": [{}], "EngineroomGpuIdle": []}, LONG_AFTER)
    rules.check()


@dataclass
class Alarm:
    """An alert, series that it fires over, and the nearest series over which it is quiet. Both change healthy ones."""

    alert: str
    fires: Series
    quiet: Series
    labels: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    """Beginnings of the healthy series that are left out while it fires."""


ALARMS = [
    Alarm("EngineroomDown", series.deployment(available=0), series.deployment(available=1)),
    # Scaled to nothing on purpose.
    Alarm("EngineroomDown", series.deployment(available=0), series.deployment(available=0, wanted=0)),
    Alarm("EngineroomSignalBlind", {}, {}, {"signal": "missing"}, without=("nv_trt_llm_request_metrics",)),
    # Half a signal is none.
    Alarm("EngineroomSignalBlind", {}, {}, {"signal": "missing"}, without=("engineroom_gateway_requests_waiting",)),
    Alarm(
        "EngineroomSignalBlind",
        series.tensorrt_engine(waiting=0, running=0),
        series.tensorrt_engine(waiting=0, running=0) | series.gateway(running=0),
        {"signal": "still"},
    ),
    Alarm("EngineroomQueueLong", series.gateway(waiting=2.2), series.gateway(waiting=2)),
    Alarm("EngineroomTtftHigh", series.ttft("0.5"), series.ttft("0.2"), {"severity": "warning"}),
    Alarm("EngineroomItlHigh", series.itl("0.1"), series.itl("0.05")),
    # As full, but all slots run: the batch is the limit, not the memory.
    Alarm(
        "EngineroomKvCacheFull",
        series.tensorrt_engine(running=40, kv=0.98),
        series.tensorrt_engine(running=64, kv=0.98),
    ),
    # As few run, but nothing waits.
    Alarm(
        "EngineroomKvCacheFull",
        series.tensorrt_engine(running=40, kv=0.98),
        series.tensorrt_engine(running=40, kv=0.98, waiting=0) | series.gateway(waiting=0),
    ),
    Alarm(
        "EngineroomFailures",
        series.triton_calls("tensorrt_llm_bls", failing=2),
        series.triton_calls("tensorrt_llm_bls", failing=0.8),
        {"by": "triton"},
    ),
    # Clients that went away are not failures.
    Alarm(
        "EngineroomFailures",
        series.triton_calls("tensorrt_llm_bls", failing=2),
        series.triton_calls("tensorrt_llm_bls", failing=2, reason="CANCELED"),
        {"by": "triton"},
    ),
    Alarm("EngineroomFailures", series.gateway_calls(2), series.gateway_calls(0.8), {"by": "gateway"}),
    # A full queue is a refusal that the client was told of, and has an alert of its own.
    Alarm("EngineroomFailures", series.gateway_calls(2), series.gateway_calls(2, "queue_full"), {"by": "gateway"}),
    Alarm("EngineroomBackupStale", series.backup(36), series.backup(35)),
    Alarm("EngineroomGpuIdle", series.gpu(45), series.gpu(55)),
    Alarm("EngineroomGpuSaturated", series.gpu(96), series.gpu(94)),
    Alarm("EngineroomAutoscalerAtMax", series.autoscaler(limited=True), series.autoscaler(limited=False)),
    # Limited by its minimum, or by the pace of its policies.
    Alarm("EngineroomAutoscalerAtMax", series.autoscaler(limited=True), series.autoscaler(current=7, limited=True)),
    Alarm("EngineroomAutoscalerInactive", series.autoscaler(active=False), series.autoscaler(active=True)),
]


def test_every_alert_fires_when_it_should_and_is_quiet_over_the_nearest_series(rules_of: RulesOf) -> None:
    rules = rules_of("signals-values")
    healthy = series.healthy("tensorrt")
    for alarm in ALARMS:
        firing = {name: values for name, values in healthy.items() if not name.startswith(alarm.without or ("-",))}
        after = LONG_AFTER if "Gpu" in alarm.alert else AFTER
        rules.expect_alerts(firing | alarm.fires, {alarm.alert: [alarm.labels]}, after)
        rules.expect_alerts(healthy | alarm.quiet, {alarm.alert: []}, after)
    # No backup ever, by a CronJob that is old enough for one.
    never = {name: values for name, values in healthy.items() if "last_successful" not in name}
    rules.expect_alerts(never, {"EngineroomBackupStale": [{}]})
    # Two of one name: the page comes on top of the warning.
    both = [{"severity": "warning"}, {"severity": "critical"}]
    rules.expect_alerts(healthy | series.ttft("1"), {"EngineroomTtftHigh": both})
    # One pod that starts again and again; its name says which.
    broken = f'kube_pod_init_container_status_restarts_total{{namespace="models",pod="{series.POD_NAMES[1]}"'
    mismatch = {f'{broken},container="preflight"}}': "0x25 1x10 2x45"}
    rules.expect_alerts(healthy | mismatch, {"EngineroomEngineMismatch": [{"pod": series.POD_NAMES[1]}]})
    rules.expect_alerts(healthy, {"EngineroomEngineMismatch": []})

    rules.check()
    tested = {alarm.alert for alarm in ALARMS} | {"EngineroomTtftHigh", "EngineroomEngineMismatch"}
    assert tested == {rule["alert"] for rule in rules.alerts}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_each_runtime_has_its_rules_and_they_add_engine_and_gateway_up(runtime: str, rules_of: RulesOf) -> None:
    rules = rules_of("signals-values", **RUNTIMES[runtime])
    labels = f"{{__name__=%r, {MINE}}}"

    def recorded(name: str) -> str:
        return labels.replace("%r", f'"{name}"')

    expected = {
        "engineroom:requests_waiting:sum": 2 * (3 + 2),
        "engineroom:requests_running:sum": 128,
        "engineroom:requests_slots:sum": 128,
        "engineroom:queued_prompt_tokens:sum": 2 * 800 * (3 + 2),
        "engineroom:kv_used_ratio:max": 0.97,
        "engineroom:replicas:count": 2,
        "engineroom:load_replicas": 2,
    }
    expected["engineroom:output_tokens_per_second:sum"] = 3000
    for name, value in expected.items():
        rules.expect_values(series.healthy(runtime), {name: value}, recorded(name))
    rules.check()


def test_builds_of_the_backend_without_two_gauges_give_the_same_signals(rules_of: RulesOf) -> None:
    rules = rules_of("signals-values")
    about = {
        name: values
        for name, values in series.healthy("tensorrt").items()
        if 'request_type="waiting"' not in name and 'kv_cache_block_type="fraction"' not in name
    }

    rules.expect_values(about, {"sum(engineroom:requests_waiting:sum)": 10, "sum(engineroom:kv_used_ratio:max)": 0.97})
    rules.check()


def test_pods_of_other_releases_are_not_counted(rules_of: RulesOf) -> None:
    rules = rules_of("signals-values")
    strangers = [
        "llm-engineroom-triton-2-engineroom-triton-6d5f7c9b48-x2k4p",  # a release named after ours
        "chat-llm-engineroom-triton-6d5f7c9b48-x2k4p",
        "llm-engineroom-backup-29000000-x2k4p",
    ]
    about = series.healthy("tensorrt")
    for pod in strangers:
        about |= series.on_pods("nv_trt_llm_request_metrics", series.constant(99), [pod], request_type="waiting")
    about['nv_trt_llm_request_metrics{namespace="others",pod="llm-engineroom-triton-0",request_type="waiting"}'] = (
        series.constant(99)
    )

    rules.expect_values(about, {"sum(engineroom:requests_waiting:sum)": 10})
    rules.check()


def test_pods_are_found_under_every_kind_of_workload(rules_of: RulesOf) -> None:
    rules = rules_of("signals-values")
    for pods in (["llm-engineroom-triton-0", "llm-engineroom-triton-12"], ["llm-engineroom-triton-3-1"]):
        about: Series = {}
        for kind in ("waiting", "scheduled"):
            about |= series.on_pods("nv_trt_llm_request_metrics", series.constant(4), pods, request_type=kind)
        about |= series.on_pods("engineroom_gateway_requests_waiting", series.constant(1), pods)
        rules.expect_values(about, {"sum(engineroom:requests_waiting:sum)": 5 * len(pods)})
    rules.check()


def test_nvidias_ratio_is_a_signal_that_an_alert_knows_to_be_blind(rules_of: RulesOf) -> None:
    rules = rules_of("scraped-values")
    healthy = series.tensorrt_engine() | series.deployment()
    # Half a second of queueing in each second of computing on one pod, a quarter on the other.
    moving: Series = {}
    for pod, queued in zip(series.POD_NAMES, (0.5, 0.25), strict=True):
        for model, share in (("tensorrt_llm", 0), ("postprocessing", queued)):
            moving |= series.on_pods("nv_inference_queue_duration_us", series.counter(share * 1e6), [pod], model=model)
            moving |= series.on_pods("nv_inference_compute_infer_duration_us", series.counter(1e6), [pod], model=model)

    rules.expect_values(healthy | moving, {"sum(engineroom:load_replicas)": 0.75})
    rules.expect_alerts(healthy | moving, {"EngineroomSignalBlind": []})
    still = {name: series.constant(7) if "queue" in name else values for name, values in moving.items()}
    rules.expect_alerts(healthy | still, {"EngineroomSignalBlind": [{"signal": "still"}]})
    idle = series.tensorrt_engine(waiting=0, running=0) | series.deployment()
    rules.expect_alerts(idle | still, {"EngineroomSignalBlind": []})
    rules.check()


def test_without_a_gateway_the_blind_signal_is_found_by_littles_law(rules_of: RulesOf) -> None:
    rules = rules_of("scraped-values", autoscaling={"kind": "none"})
    idle = series.tensorrt_engine(waiting=0, running=0) | series.deployment()
    in_flight = series.on_pods("nv_inference_request_duration_us", series.counter(0.6e6), model="tensorrt_llm_bls")

    rules.expect_alerts(idle | in_flight, {"EngineroomSignalBlind": [{"signal": "still"}]})
    rules.expect_alerts(series.tensorrt_engine() | series.deployment() | in_flight, {"EngineroomSignalBlind": []})
    rules.check()


def test_alerts_on_what_only_a_gateway_measures_are_not_rendered_without_one(rules_of: RulesOf) -> None:
    names = {rule["alert"] for rule in rules_of("scraped-values").alerts}

    assert not names & {"EngineroomTtftHigh", "EngineroomItlHigh"}
    assert "EngineroomQueueLong" in names


def test_dcgm_labels_that_prometheus_renamed_are_found(rules_of: RulesOf) -> None:
    rules = rules_of("signals-values", monitoring={"alerts": {"dcgmHonorLabels": False}})
    renamed = {
        name.replace("{", '{namespace="gpu-platform",pod="dcgm-exporter-abcde",'): values
        for name, values in series.gpu(99, prefix="exported_").items()
    }

    rules.expect_alerts(renamed, {"EngineroomGpuSaturated": [{}]}, LONG_AFTER)
    rules.check()


def test_keda_asks_for_the_load_that_its_own_rules_record(rules_of: RulesOf, render: Render) -> None:
    rules = rules_of("keda-values")
    [scaled] = [item for item in render("keda-values") if item["kind"] == "ScaledObject"]
    [trigger] = scaled["spec"]["triggers"]

    # 128 run and 10 wait, in units of 8.
    rules.expect_values(series.healthy("ctranslate2"), {trigger["metadata"]["query"]: 138 / 8})
    rules.expect_nothing({}, trigger["metadata"]["query"])
    rules.check()


def test_the_signal_of_ones_own_in_the_documentation_records_what_it_says(rules_of: RulesOf) -> None:
    page = (scenarios.ROOT / "docs" / "autoscaling.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    rules = rules_of("h100", **yaml.safe_load(example))

    # 128 run and 10 wait, in units of four fifths of 64.
    rules.expect_values(series.healthy("tensorrt"), {"sum(engineroom:load_replicas)": 138 / (0.8 * 64)})
    rules.check()


def test_prometheus_adapters_rule_finds_the_load_by_the_release_of_the_service(
    rules_of: RulesOf, render: Render
) -> None:
    values = yaml.safe_load((PLATFORM / "values.yaml").read_text(encoding="utf-8"))
    [rule] = values["prometheus-adapter"]["rules"]["custom"]
    [hpa] = [item for item in render("signals-values") if item["kind"] == "HorizontalPodAutoscaler"]
    wanted = hpa["spec"]["metrics"][0]["object"]

    # What the adapter looks for, and the name that it gives to what it finds.
    rules = rules_of("signals-values")
    rules.expect_values(series.healthy("tensorrt"), {f"sum({rule['seriesQuery']})": 2})
    name = "engineroom:load_replicas"
    assert re.sub(rule["name"]["matches"], rule["name"]["as"].replace("$", "\\"), name) == wanted["metric"]["name"]
    assert rule["resources"]["overrides"] == {
        "namespace": {"resource": "namespace"},
        "service": {"resource": "service"},
    }
    # What it asks when the HPA does.
    query = rule["metricsQuery"]
    for placeholder, text in {
        "<<.Series>>": name,
        "<<.LabelMatchers>>": f'namespace="models",service="{wanted["describedObject"]["name"]}"',
        "<<.GroupBy>>": "service",
    }.items():
        assert placeholder in query
        query = query.replace(placeholder, text)
    rules.expect_values(series.healthy("tensorrt"), {query: 2}, '{service="llm-engineroom"}')
    rules.check()


RUNBOOKS = scenarios.ROOT / "docs" / "runbooks"


def test_every_alert_has_a_runbook_page_that_names_it_and_every_page_an_alert(
    shipped: dict[str, list[dict[str, Any]]],
) -> None:
    pages: dict[str, set[str]] = {}
    for item in itertools.chain.from_iterable(shipped.values()):
        if item["kind"] == "PrometheusRule":
            for rule in (rule for group in item["spec"]["groups"] for rule in group["rules"] if "alert" in rule):
                [link] = [text for name, text in rule["annotations"].items() if name.startswith("runbook")]
                pages.setdefault(Path(link).name, set()).add(rule["alert"])

    assert set(pages) == {path.name for path in RUNBOOKS.glob("*.md")} - {"README.md"}
    for page, alerts in pages.items():
        text = (RUNBOOKS / page).read_text(encoding="utf-8")
        assert text.startswith(f"# {alerts.pop()}\n")
        assert not alerts
        for heading in ("## What it means", "## What users notice", "## Look", "## Do"):
            assert f"\n{heading}\n" in text, f"{page} lacks {heading}"
