"""What stands in engine-builder/ agrees with the rest of the project, and its entrypoint does what it says."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from image_containers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from engineroom.engines.tensorrt_versions import PINNED

FOLDER = ROOT / "engine-builder"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
INSTRUCTIONS = [line for line in re.sub(r"\\\n", " ", DOCKERFILE).splitlines() if line and line[0] not in "# "]


def stages() -> dict[str, list[str]]:
    """Instructions of each stage, by its name."""
    found: dict[str, list[str]] = {}
    for line in INSTRUCTIONS:
        if match := re.fullmatch(r"FROM \S+ AS (\S+)", line):
            found[match[1]] = []
        elif found:
            list(found.values())[-1].append(line)
    return found


def labels(target: str) -> dict[str, str]:
    return dict(re.findall(r'(\S+)="([^"]*)"', next(line for line in stages()[target] if line.startswith("LABEL"))))


def arguments() -> dict[str, str]:
    """Build arguments with their defaults."""
    return dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, flags=re.MULTILINE))


TARGETS = ("toolkit", "builder", "triton-cpu")


def test_the_builder_stands_on_the_image_that_engines_are_tied_to() -> None:
    assert arguments()["SERVER_IMAGE"] == PINNED.image
    assert labels("builder")["dev.engineroom.tensorrt-llm"] == PINNED.trtllm
    assert labels("builder")["dev.engineroom.tensorrt"] == PINNED.tensorrt


def test_labels_of_the_cpu_server_are_its_pins() -> None:
    pins = (ROOT / "tools/engineroom/serving/runtime-requirements.txt").read_text()
    assert f"ctranslate2=={labels('triton-cpu')['dev.engineroom.ctranslate2']}\n" in pins


@pytest.mark.parametrize("target", TARGETS)
def test_every_image_has_the_same_contract(target: str) -> None:
    lines = stages()[target]
    program = "tritonserver" if target == "triton-cpu" else "engineroom"
    assert f'ENTRYPOINT ["engineroom-entrypoint", "{program}"]' in lines
    assert {"title", "description", "version", "revision"} <= {name.rpartition(".")[2] for name in labels(target)}
    # Packages are made in stages of their own: nothing that installs them is left behind.
    assert not [line for line in lines if "pip" in line.replace("pip AS", "") and "install" in line]


@pytest.mark.parametrize("target", ["toolkit", "triton-cpu"])
def test_images_of_pods_run_as_the_user_that_the_chart_names(target: str) -> None:
    security = (ROOT / "charts/engineroom/charts/common/templates/_security.tpl").read_text()
    user = re.search(r"runAsUser: (\d+)", security)
    group = re.search(r"runAsGroup: (\d+)", security)
    assert user is not None
    assert group is not None
    assert f"USER {user[1]}:{group[1]}" in stages()[target]


def test_the_chart_names_the_images_as_they_are_built() -> None:
    values = yaml.safe_load((ROOT / "charts/engineroom/values.yaml").read_text())["images"]
    script = (ROOT / "ci/images").read_text()
    assert "PREFIX:-localhost/engineroom" in script
    assert f"{values['toolkit']['registry']}/{values['toolkit']['repository']}" == "localhost/engineroom/toolkit"
    if "builder" in values:
        assert values["builder"]["repository"] == "engineroom/engine-builder"


def test_all_that_is_copied_is_there_and_reaches_the_build() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    admitted = [line[1:] for line in ignore if line.startswith("!")]
    sources = {
        word
        for line in INSTRUCTIONS
        if line.startswith("COPY") and "--from=" not in line
        for word in line.split()[1:-1]
        if not word.startswith("--")
    }
    assert sources >= {"tools", "model-repo", "charts", "pyproject.toml", "constraints.txt"}
    for source in sources:
        assert (ROOT / source).exists()
        assert any(
            source == name or source.startswith(f"{name}/") or name.startswith(f"{source}/") for name in admitted
        )


def test_the_wheel_gets_all_that_it_is_made_of() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    admitted = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in [*wheel["packages"], *wheel["force-include"]]:
        assert any(source == name or source.startswith(f"{name}/") for name in admitted), source


class TestEntrypoint:
    """Run by the shell, with programs that print what they were given."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> str:
        for name in ("engineroom", "tritonserver"):
            program = tmp_path / name
            program.write_text(f'#!/bin/sh\necho "{name} $$ $HOME $*"\nexit 7\n')
            program.chmod(0o755)
        return f"{tmp_path}:{os.environ['PATH']}"

    def run(self, path: str, *words: str, home: str = "/") -> "tuple[int, int, list[str]]":
        process = subprocess.Popen(
            [FOLDER / "entrypoint", *words], env={"PATH": path, "HOME": home}, stdout=subprocess.PIPE, text=True
        )
        out, _ = process.communicate(timeout=20)
        return process.pid, process.returncode, out.split()

    @pytest.mark.parametrize("words", [["up", "recipe.yaml"], ["--help"], ["diff", "a", "b"], []])
    def test_arguments_are_those_of_the_images_program(self, path: str, tmp_path: Path, words: list[str]) -> None:
        pid, code, out = self.run(path, "engineroom", *words, home=str(tmp_path))
        # The process became the program: signals reach it, and its exit code is the container's.
        assert (out, code) == (["engineroom", str(pid), str(tmp_path), *words], 7)

    def test_the_server_gets_its_flags(self, path: str, tmp_path: Path) -> None:
        _, _, out = self.run(path, "tritonserver", "--model-repository=/m", home=str(tmp_path))
        assert (out[0], out[-1]) == ("tritonserver", "--model-repository=/m")

    def test_a_shell_is_a_shell(self, path: str) -> None:
        _, code, out = self.run(path, "engineroom", "sh", "-c", "echo hello; exit 3")
        assert (code, out) == (3, ["hello"])

    def test_a_program_by_its_path_is_run(self, path: str) -> None:
        _, code, out = self.run(path, "engineroom", "/bin/echo", "hello")
        assert (code, out) == (0, ["hello"])

    def test_the_other_program_of_the_image_can_be_named(self, path: str, tmp_path: Path) -> None:
        _, _, out = self.run(path, "tritonserver", "engineroom", "verify", home=str(tmp_path))
        assert out[0] == "engineroom"

    def test_a_home_that_is_not_there_is_replaced(self, path: str) -> None:
        _, _, out = self.run(path, "engineroom", "up", home="/nonexistent/home")
        assert out[2] == "/tmp"


class TestRequirements:
    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, FOLDER / "requirements", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    def test_they_are_those_of_the_project_and_its_extras(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        wanted = project["project"]["dependencies"] + project["project"]["optional-dependencies"]["cpu"]
        assert self.run("cpu").stdout.splitlines() == wanted

    def test_the_build_needs_its_backend(self) -> None:
        assert self.run("--build").stdout.startswith("hatchling")

    def test_an_extra_that_does_not_exist_is_refused(self) -> None:
        done = self.run("cpu", "gpus")
        assert (done.returncode, done.stdout) == (2, "")
        assert "no extra gpus" in done.stderr

    @pytest.mark.parametrize("argument", ["TOOLKIT_EXTRAS", "BUILDER_EXTRAS"])
    def test_extras_of_the_images_exist(self, argument: str) -> None:
        assert self.run(arguments()[argument]).returncode == 0


def test_a_target_that_does_not_exist_is_refused() -> None:
    done = subprocess.run([ROOT / "ci/images", "toolbox"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no target toolbox" in done.stderr


def test_helm_in_the_builder_is_the_one_of_the_tests() -> None:
    from engineroom.deploy.helm import WHEEL_VERSION, WHEELS

    assert f"{next(iter(WHEELS))}=={WHEEL_VERSION}" in DOCKERFILE


def needed(extras: set[str]) -> set[str]:
    """Names of all distributions that engineroom with these extras brings along, as installed here."""
    found: set[str] = set()
    queue: list[tuple[str, frozenset[str]]] = [("engineroom", frozenset(extras))]
    while queue:
        name, wanted = queue.pop()
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in wanted or {""}):
                brought = canonicalize_name(requirement.name)
                if brought not in found:
                    found.add(brought)
                    queue.append((brought, frozenset(requirement.extras)))
    return found


def test_the_licence_of_everything_shipped_is_listed() -> None:
    page = (ROOT / "docs" / "licences.md").read_text()
    listed = set(re.findall(r"^\| (\S+) \| .+ \| .+ \|$", page, flags=re.MULTILINE))
    pins = (ROOT / "tools/engineroom/serving/runtime-requirements.txt").read_text()
    server = set(re.findall(r"^([\w-]+)==", pins, flags=re.MULTILINE))

    toolkit = needed(set(arguments()["TOOLKIT_EXTRAS"].split()))
    assert {"click", "pydantic-core", "uvicorn"} <= toolkit
    # tritonclient would bring it, and 60 MB more: docs/decisions/0011.
    assert "numpy" not in toolkit
    builder = needed(set(arguments()["BUILDER_EXTRAS"].split()))
    assert {"click", "gguf", "numpy"} <= builder
    # Run ci/images and ci/licences where this fails: an image holds a package that the page does not know.
    assert (toolkit | builder | server) - listed == set()
