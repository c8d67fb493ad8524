"""Names fit into Kubernetes whatever the release is called, and two releases never share one."""

import json
import re
import shutil
from pathlib import Path

import pytest
import scenarios
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from engineroom.deploy.helm import Helm

# RFC 1035, as the API server checks names of Services.
SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")

# What Helm itself takes as a release's name: 53 characters, dots and leading digits included.
RELEASES = st.from_regex(
    r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,28}[a-z0-9])?){0,2}", fullmatch=True
)
RELEASES = RELEASES.filter(lambda name: len(name) <= 53)

# Renders the helpers for many releases at once: one run of Helm takes as long as a hundred names.
PROBE = """
{{- range $index, $case := .Values.cases }}
{{- $release := dict "Name" $case.release "Service" "Helm" }}
{{- $account := dict "create" true "name" "" }}
{{- $values := dict "nameOverride" $case.name "fullnameOverride" $case.fullname "serviceAccount" $account }}
{{- $chart := dict "Name" "engineroom" "Version" "1.2.3+build" "AppVersion" "1.2.3" }}
{{- $root := dict "Release" $release "Values" $values "Chart" $chart }}
---
full: {{ include "engineroom.names.fullname" $root | quote }}
triton: {{ include "engineroom.names.triton" $root | quote }}
account: {{ include "engineroom.names.serviceAccount" $root | quote }}
longest: {{ include "engineroom.names.longestSuffix" $root | quote }}
labels: {{- include "engineroom.labels.all" (dict "root" $root "component" "triton") | nindent 2 }}
{{- end }}
"""


@pytest.fixture(scope="module")
def probe(helm4: Helm, tmp_path_factory: pytest.TempPathFactory) -> "Probe":
    return Probe(helm4, tmp_path_factory.mktemp("probe"))


class Probe:
    """A chart of the test's own that has nothing but the real library."""

    def __init__(self, helm: Helm, folder: Path) -> None:
        self.helm = helm
        self.chart = folder / "probe"
        shutil.copytree(scenarios.CHART / "charts" / "common", self.chart / "charts" / "common")
        (self.chart / "templates").mkdir()
        (self.chart / "templates" / "names.yaml").write_text(PROBE, encoding="utf-8")
        facts = {"apiVersion": "v2", "name": "probe", "version": "1.0.0"}
        (self.chart / "Chart.yaml").write_text(yaml.safe_dump(facts), encoding="utf-8")

    def __call__(self, *releases: str, name: str = "", fullname: str = "") -> list[dict[str, str]]:
        cases = [{"release": release, "name": name, "fullname": fullname} for release in releases]
        values = self.chart.parent / "values.json"
        values.write_text(json.dumps({"cases": cases}), encoding="utf-8")
        rendered = self.helm.template(self.chart, [values], release="probe")
        return [document for document in yaml.safe_load_all(rendered) if document]


@settings(max_examples=15)
@given(releases=st.lists(RELEASES, min_size=10, max_size=30, unique=True))
def test_every_name_of_every_release_fits_and_is_its_own(probe: Probe, releases: list[str]) -> None:
    found = probe(*releases)

    assert len(found) == len(releases)
    assert len({names["full"] for names in found}) == len(releases)
    for release, names in zip(releases, found, strict=True):
        assert SERVICE_NAME.fullmatch(names["full"])
        assert SERVICE_NAME.fullmatch(names["triton"])
        assert len(names["full"] + names["longest"]) <= 63
        assert names["labels"]["app.kubernetes.io/instance"] == release  # type: ignore[index]
        assert all(isinstance(value, str) and len(value) <= 63 for value in names["labels"].values())  # type: ignore[attr-defined]


@settings(max_examples=20)
@given(fullname=st.from_regex(r"[a-z]([-a-z0-9]{0,200}[a-z0-9])?", fullmatch=True))
def test_a_name_given_by_hand_fits_too(probe: Probe, fullname: str) -> None:
    [names] = probe("llm", fullname=fullname)

    assert SERVICE_NAME.fullmatch(names["full"])
    assert len(names["full"] + names["longest"]) <= 63
    if len(fullname + names["longest"]) <= 63:
        assert names["full"] == fullname


def test_names_stay_readable_while_they_can(probe: Probe) -> None:
    assert [names["full"] for names in probe("llm", "engineroom", "my-engineroom-2")] == [
        "llm-engineroom",
        "engineroom",
        "my-engineroom-2",
    ]
    assert probe("llm", name="chat")[0]["full"] == "llm-chat"


def test_a_name_that_has_to_be_changed_says_so_with_a_hash(probe: Probe) -> None:
    digit, dotted, dashed = (names["full"] for names in probe("7b", "a.b", "a-b"))

    assert re.fullmatch(r"r-7b-engineroom-[0-9a-f]{8}", digit)
    assert re.fullmatch(r"a-b-engineroom-[0-9a-f]{8}", dotted)
    assert dashed == "a-b-engineroom"


def test_the_longest_suffix_covers_every_object_that_is_rendered(
    probe: Probe, shipped: dict[str, list[dict[str, dict[str, str]]]]
) -> None:
    longest = probe("llm")[0]["longest"]
    for item in shipped["h100"]:
        suffix = item["metadata"]["name"].removeprefix("llm-engineroom")
        assert len(suffix) <= len(longest)
