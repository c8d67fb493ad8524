"""Rules of the project that no single module can hold: layers, documents, names, versions."""

import importlib
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import engineroom
from engineroom.documents import Document

ROOT = Path(__file__).resolve().parent.parent
PROSE = ["README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]

#: Notes that one machine leaves for itself in its cache: no other program reads them.
PRIVATE_DOCUMENTS = {"Marker", "PulledFiles", "Remembered", "Resolved"}

#: Each costs 20 to 300 ms, and `engineroom --help` has 200.
HEAVY = [
    "numpy",
    "huggingface_hub",
    "tritonclient",
    "grpc",
    "google.protobuf",
    "obstore",
    "ctranslate2",
    "tokenizers",
    "safetensors",
    "pydantic",
]


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command and subcommand that --help shows, with its whole name."""
    from engineroom.cli.main import cli

    def below(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
        context = click.Context(group, info_name=name)
        for child in group.list_commands(context):
            command = group.get_command(context, child)
            assert command is not None, f"{name} lists {child} and has no such command"
            yield f"{name} {child}", command
            if isinstance(command, click.Group):
                yield from below(command, f"{name} {child}")

    yield from ((name, command) for name, command in below(cli, "engineroom") if not command.hidden)


def tracked() -> list[Path]:
    """Files that are committed, or would be by `git add .`."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def in_a_fresh_python(code: str, **environment: str) -> str:
    """What a Python prints that has imported nothing yet."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "tools"), **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Versions and names


def test_the_newest_version_of_the_changelog_is_the_version_of_the_package() -> None:
    headings = re.findall(r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)

    assert headings[0] == engineroom.__version__


def test_the_chart_has_the_version_of_the_package() -> None:
    chart = (ROOT / "charts" / "engineroom" / "Chart.yaml").read_text(encoding="utf-8")

    assert re.search(r'^appVersion: "?([\d.]+)"?$', chart, re.MULTILINE)[1] == engineroom.__version__  # type: ignore[index]  # None fails as it should


def test_no_tracked_file_names_a_machine_a_folder_of_ours_or_an_index_host() -> None:
    # Put together from pieces, or this file would be found.
    pieces = [
        ("/wo", "rk/"),
        ("/tmp/", "lab"),
        ("/ro", "ot/"),
        ("/opt/", "wheels"),
        ("pypi", ".org"),
        ("pythonho", "sted.org"),
    ]
    forbidden = re.compile("|".join(re.escape(first + second) for first, second in pieces))
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        lines = text.splitlines()
        found += [
            f"{path.relative_to(ROOT)}:{n}: {line[:100]}" for n, line in enumerate(lines, 1) if forbidden.search(line)
        ]

    assert not found, "\n".join(found)


def test_constraints_pin_every_distribution_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    loose = [
        line
        for line in lines
        if not line.startswith("#")
        and not re.match(r"^[a-z0-9-]+==[\w.!+]+( ; python_version == \"3\.1[123]\")?$", line)
    ]

    assert lines
    assert not loose


def test_constraints_cover_every_requirement_of_the_project() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = [wanted for extra in project["project"]["optional-dependencies"].values() for wanted in extra]
    wanted = [*project["project"]["dependencies"], *extras, *project["build-system"]["requires"]]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", one)[0]).lower() for one in wanted}  # type: ignore[index]  # always a name
    pinned = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))

    assert not names - pinned, "run ci/update-constraints"


# Layers


def test_every_module_of_the_package_has_a_layer(tmp_path: Path) -> None:
    """The contract is exhaustive: it breaks as soon as a module appears that nobody gave a place."""
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "tools")}
    lint = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]

    kept = subprocess.run(lint, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert kept.returncode == 0, kept.stdout

    (tmp_path / "tools" / "engineroom" / "utils.py").write_text('"""Nobody gave this a place."""\n')
    broken = subprocess.run(lint, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert broken.returncode != 0
    assert "utils" in broken.stdout


def test_the_models_of_triton_do_not_import_engineroom() -> None:
    models = sorted((ROOT / "model-repo").rglob("*.py"))
    importing = [
        path for path in models if re.search(r"^\s*(from|import) engineroom\b", path.read_text(), re.MULTILINE)
    ]

    assert models
    assert not importing


# The command line


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from engineroom.cli.main import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        f"print('loaded:', *[name for name in {HEAVY!r} if name in sys.modules])\n"
    )

    assert in_a_fresh_python(code).splitlines()[-1].strip() == "loaded:"


def test_each_command_has_help_with_an_example_and_stands_in_the_manual() -> None:
    manual = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    wrong = []
    for name, command in commands():
        text = command.help or ""
        if not command.get_short_help_str():
            wrong.append(f"{name}: no help")
        if not isinstance(command, click.Group) and name not in text:
            wrong.append(f"{name}: no example in its help")
        if f"## {name}\n" not in manual:
            wrong.append(f"{name}: not in docs/cli.md; run `make generate`")

    assert not wrong, "\n".join(wrong)


def test_each_option_of_each_command_says_what_it_does() -> None:
    silent = [
        f"{name} {parameter.opts[0]}"
        for name, command in commands()
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden and not parameter.help
    ]

    assert not silent


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_offers_the_commands(shell: str) -> None:
    code = "import sys; sys.argv = ['engineroom']; from engineroom.cli.main import main; main()"
    asked = {"COMP_WORDS": "engineroom pu", "COMP_CWORD": "pu" if shell == "fish" else "1"}
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "tools"), **asked}

    def answer(instruction: str) -> str:
        environment = {**variables, "_ENGINEROOM_COMPLETE": instruction}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
        )
        return done.stdout

    assert "engineroom" in answer(f"{shell}_source")
    offered = answer(f"{shell}_complete")
    assert "publish" in offered
    assert "pull" in offered
    assert "serve" not in offered


# Documents and documentation


def test_each_file_between_the_stages_has_a_schema() -> None:
    for module in pkgutil.walk_packages(engineroom.__path__, "engineroom."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    def subclasses(of: type[Document]) -> Iterator[type[Document]]:
        for one in of.__subclasses__():
            yield one
            yield from subclasses(one)

    described = set()
    for path in (ROOT / "docs" / "schemas").glob("*.json"):
        schema = json.loads(path.read_text(encoding="utf-8"))
        described |= {schema["title"], *schema.get("$defs", {})}
    ours = {one.__name__ for one in subclasses(Document) if one.__module__.startswith("engineroom.")}

    assert not ours - described - PRIVATE_DOCUMENTS, "give it a line in ci/generate-schemas"


@pytest.mark.parametrize("page", PROSE)
def test_paths_and_commands_in_prose_exist(page: str) -> None:
    """Whatever stands in backticks and starts like a file of this repository, a target of make or a verb of ours."""
    text = (ROOT / page).read_text(encoding="utf-8")
    quoted = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text) + re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    if "```" in text:
        quoted += [
            line.strip().removeprefix("$ ")
            for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
            for line in block.splitlines()
        ]
    tops = {path.relative_to(ROOT).parts[0] for path in tracked()}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    verbs = {name.split()[1] for name, _ in commands()}
    here = (ROOT / page).parent
    missing = []
    for one in quoted:
        words = one.split("#")[0].split()
        if not words:
            continue
        first = words[0].rstrip("/.,:")
        if first == "make" and len(words) > 1 and re.fullmatch(r"[a-z-]+", words[1]) and words[1] not in targets:
            missing.append(one)
        elif first in ("engineroom", ".venv/bin/engineroom") and len(words) > 1:
            if re.fullmatch(r"[a-z][a-z-]+", words[1]) and words[1] not in verbs:
                missing.append(one)
        elif "/" in first and first.split("/")[0] in tops and not re.search(r"[<>*{}…$|]", first):
            missing += [one] if not (ROOT / first).exists() and not (here / first).exists() else []

    assert not missing


def test_each_script_of_ci_can_be_run_and_says_what_it_is_for() -> None:
    for path in (ROOT / "ci").iterdir():
        if path.suffix or path.name == "required-tiers" or path.is_dir():
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        assert os.access(path, os.X_OK), path
        assert lines[0].startswith("#!/usr/bin/env "), path
        assert len(lines[1]) > 10, f"{path}: its second line says what it is for"
        assert lines[1].startswith(("# ", '"""')), path


def test_each_target_of_make_explains_itself() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)

    assert targets
    assert set(targets) == set(re.findall(r"^([a-z-]+):.*## \w", makefile, re.MULTILINE))
