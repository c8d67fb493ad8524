"""Everything derived from values.yaml and gpus.yaml is up to date, and the generators notice what they should."""

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
from types import ModuleType

import pytest
import scenarios
import yaml

from engineroom.deploy.gpu_values import class_values
from engineroom.gpus import catalogue


def load(name: str) -> ModuleType:
    """A program of ci/, which has no ending, as a module."""
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), str(scenarios.ROOT / "ci" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while they are made.
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


chart = load("generate-chart")

VALUES = """\
# -- What it is.
plain: 1 # @schema type: integer
section:
  # -- Said in
  # two lines.
  inner: "" # @schema type: string, pattern: '^a|b$'
"""


@pytest.mark.parametrize("generator", ["generate-chart", "generate-gpu-values"])
def test_the_derived_files_are_what_their_generator_would_write(generator: str) -> None:
    command = [sys.executable, str(scenarios.ROOT / "ci" / generator), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr


def test_a_value_becomes_a_row_of_the_table_and_a_property_of_a_closed_schema() -> None:
    values = chart.read_values(VALUES)
    schema = chart.json_schema(values, title="T", subcharts=["common"])

    assert [value.name for value in values] == ["plain", "section.inner"]
    assert values[1].description == "Said in two lines."
    assert schema["additionalProperties"] is False
    assert schema["properties"]["section"]["additionalProperties"] is False
    assert schema["properties"]["section"]["properties"]["inner"]["pattern"] == "^a|b$"
    assert schema["properties"].keys() == {"plain", "section", "global", "common"}
    assert '| `section.inner` | `""` | Said in two lines. |' in chart.table(values)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (VALUES.replace(" # @schema type: integer", ""), "plain .line 2. has no `# @schema"),
        (VALUES.replace("# -- What it is.\n", ""), "plain has no `# --` description"),
        (VALUES.replace("type: integer", "minimum: 1"), "plain: its @schema has no type"),
    ],
)
def test_a_value_without_words_or_type_is_refused(changed: str, problem: str) -> None:
    with pytest.raises(chart.ChartError, match=problem):
        chart.read_values(changed)


GOOD = (
    '{{- define "engineroom.x" }}{{ .Values.plain }}{{ end }}{{ include "engineroom.x" . }}{{ .Values.section.inner }}'
)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (GOOD.replace(".Values.plain", "1"), "no template reads plain"),
        (GOOD.replace(".Values.plain", "/* .Values.plain */").replace("{{ /*", "{{/*"), "no template reads plain"),
        (GOOD.replace(".Values.section.inner", ".Values.section"), "no template reads section.inner"),
        (GOOD + "{{ .Values.section.iner }}", "templates read .Values.section.iner, which values.yaml does not"),
        (GOOD.replace('{{ include "engineroom.x" . }}', ""), 'no template includes the helper "engineroom.x"'),
        (GOOD.replace("engineroom.x", "x"), 'the helper "x" has no prefix'),
    ],
)
def test_values_helpers_and_templates_have_to_agree(template: str, problem: str) -> None:
    values = chart.read_values(VALUES)

    assert chart.problems(values, {"a.yaml": GOOD}) == []
    assert any(problem in found for found in chart.problems(values, {"a.yaml": template}))


def test_the_schema_takes_the_defaults_that_stand_beside_it() -> None:
    from jsonschema import Draft7Validator

    schema = json.loads((scenarios.CHART / "values.schema.json").read_text(encoding="utf-8"))
    defaults = yaml.safe_load((scenarios.CHART / "values.yaml").read_text(encoding="utf-8"))

    Draft7Validator.check_schema(schema)
    assert list(Draft7Validator(schema).iter_errors(defaults)) == []
    assert list(Draft7Validator(schema).iter_errors({**defaults, "gpus": {}}))


def test_there_is_one_file_for_each_gpu_class_and_it_says_what_the_class_says() -> None:
    folder = scenarios.ROOT / "values" / "gpu"

    assert {path.stem for path in folder.glob("*")} == set(catalogue())
    for name, gpu in catalogue().items():
        values = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
        assert values == class_values(gpu).as_dict()
        assert values["gpu"]["perNode"] == gpu.gpus_per_node
        assert values["model"]["runtime"] in gpu.runtimes
        assert "ref" not in values["artifact"]


def test_a_subchart_s_own_schema_closes_its_values() -> None:
    schema = json.loads((scenarios.CHART / "values.schema.json").read_text(encoding="utf-8"))
    nim = json.loads((scenarios.CHART / "charts" / "nim" / "values.schema.json").read_text(encoding="utf-8"))

    assert schema["properties"]["nim"]["properties"]["enabled"]["type"] == "boolean"
    assert "additionalProperties" not in schema["properties"]["nim"]
    assert nim["additionalProperties"] is False


def test_a_value_that_only_switches_a_subchart_on_counts_as_read() -> None:
    values = chart.read_values(VALUES)
    template = GOOD.replace(".Values.plain", "1")

    assert chart.problems(values, {"a.yaml": template}) == ["values.yaml: no template reads plain"]
    assert chart.problems(values, {"a.yaml": template}, {"plain"}) == []
