"""The two Helm majors that every user of the chart may have, and everything that the chart ships, rendered once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scenarios

from engineroom.deploy.helm import Helm

Render = Callable[..., list[dict[str, Any]]]


def helm(name: str) -> Helm:
    """``helm3`` or ``helm4``. Without it there is nothing to test with: CI fails, a laptop skips and is told why."""
    if program := scenarios.program(name):
        return Helm(program)
    reason = f"no {name} on this machine: run ci/install-helm"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def helm4() -> Helm:
    return helm("helm4")


@pytest.fixture(scope="session")
def helm3() -> Helm:
    return helm("helm3")


@pytest.fixture(params=["helm3", "helm4"])
def any_helm(request: pytest.FixtureRequest) -> Helm:
    return helm(request.param)


@pytest.fixture(scope="session")
def shipped(helm4: Helm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """All objects of all values files, by the name of the file."""
    scratch = tmp_path_factory.mktemp("shipped")
    return {
        values.stem: scenarios.objects(scenarios.render(helm4, values, scratch)) for values in scenarios.values_files()
    }


@pytest.fixture
def render(helm4: Helm, tmp_path: Path) -> Render:
    """Render the chart with one values file and what a test changes in it; gives objects."""

    def rendered(values: str, **overrides: Any) -> list[dict[str, Any]]:
        file = next(path for path in scenarios.values_files() if path.stem == values)
        return scenarios.objects(scenarios.render(helm4, file, tmp_path, overrides))

    return rendered
