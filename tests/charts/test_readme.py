"""charts/README.md leads from every system to files that are there and to values that exist."""

import re

import pytest
import scenarios
import yaml

README = scenarios.ROOT / "charts" / "README.md"
TEMPLATES = scenarios.CHART / "templates"

#: What people look for, as they call it.
SYSTEMS = [
    "Engine build",
    "Quantisation",
    "Paged KV",
    "in-flight batching",
    "Device plugin",
    "NFD",
    "GFD",
    "DCGM",
    "Prometheus scrape",
    "Deployment",
    "Service",
    "HPA with processor and custom metric",
    "NIM",
    "Ingress with hashing",
    "StatefulSet",
    "Alerts",
    "Dashboards",
    "Spot",
    "Scaling policies",
    "Resource planning",
    "Security contexts",
    "Backup",
]


def rows() -> list[tuple[str, list[str], list[str]]]:
    """System, files and values keys of each row of the table."""
    table = README.read_text(encoding="utf-8").partition("## System → file → values key")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:3] != "|--"]
    return [
        (row[0], re.findall(r"`([^`]+)`", row[1]), re.findall(r"`([^`]+)`", row[2]))
        for row in cells
        if len(row) == 3 and row[0] != "System"
    ]


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_has_a_row(system: str) -> None:
    assert any(system in name for name, _, _ in rows())


def test_every_file_of_the_table_is_there() -> None:
    components = {path.name for path in TEMPLATES.iterdir()}
    files = [file for _, found, _ in rows() for file in found if "/" in file]
    assert len(files) > 30
    for file in files:
        first = file.partition("/")[0]
        if first in components:
            assert (TEMPLATES / file).exists(), file
        elif (scenarios.ROOT / first).exists():
            assert (scenarios.ROOT / file).exists(), file


def test_every_values_key_of_the_table_exists() -> None:
    defaults = yaml.safe_load((scenarios.CHART / "values.yaml").read_text(encoding="utf-8"))
    sections = defaults.keys() - ({"autoscaling"} - {path.name for path in TEMPLATES.iterdir()})
    keys = [key for _, _, found in rows() for key in found if key.split(".")[0] in sections]
    assert len(keys) > 20
    for key in keys:
        path, _, value = key.partition(": ")
        inner = defaults
        for part in path.split("."):
            inner = inner[part]
        if value:
            schema = (scenarios.CHART / "values.schema.json").read_text(encoding="utf-8")
            assert f'"{value}"' in schema, key
