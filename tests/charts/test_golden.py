"""What ships is what was reviewed, and both Helm majors ship the same."""

from pathlib import Path

import pytest
import scenarios

from engineroom.deploy.helm import Helm


def test_every_values_file_renders_what_was_reviewed(helm4: Helm, tmp_path: Path) -> None:
    wanted = {path: path.read_text(encoding="utf-8") for path in scenarios.GOLDEN.glob("*.yaml")}
    found = dict(scenarios.generate(helm4, tmp_path))

    assert found.keys() == wanted.keys(), "run ci/golden, and review the difference"
    for path, manifests in found.items():
        assert manifests == wanted[path], f"{path.name} differs: run ci/golden, and review the difference"


@pytest.mark.parametrize("values", scenarios.values_files(), ids=lambda path: path.stem)
def test_helm_3_renders_objects_equal_to_those_of_helm_4(
    values: Path, helm3: Helm, helm4: Helm, tmp_path: Path
) -> None:
    third = scenarios.objects(scenarios.render(helm3, values, tmp_path))
    fourth = scenarios.objects(scenarios.render(helm4, values, tmp_path))

    assert len(third) >= 3
    assert third == fourth


def test_the_helms_are_the_two_majors_that_the_readme_promises(helm3: Helm, helm4: Helm) -> None:
    assert helm3.version().startswith("v3.19.")
    assert helm4.version().startswith("v4.")
