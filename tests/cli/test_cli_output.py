"""What a user of the command line sees where all is well."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from engineroom import gpus, recipe
from engineroom.cli import console
from engineroom.cli.main import cli, sentence
from engineroom.errors import EngineroomError, InputError, StoreError


@pytest.mark.parametrize("gpu", list(gpus.catalogue()))
def test_init_writes_a_recipe_that_is_legal_for_every_class_and_runtime(gpu: str, tmp_path: Path) -> None:
    for runtime in [None, *gpus.find(gpu).runtimes]:
        path = tmp_path / f"{runtime}.yaml"
        flags = ["--runtime", runtime] if runtime else []
        done = CliRunner().invoke(
            cli,
            ["init", "--model", "hf://org/name@v1", "--gpu", gpu, "--to", str(path), *flags],
            catch_exceptions=False,
        )

        assert done.exit_code == 0
        made = recipe.load(path)
        assert (made.gpu, made.model.source, made.model.revision) == (gpu, "hf://org/name", "v1")
        assert runtime in (None, made.runtime)
        # The builder of pytorch takes weights as they are stored, and would refuse fp8.
        assert made.runtime != "pytorch" or made.precision == "bfloat16"


def test_init_replaces_a_recipe_only_when_forced(tmp_path: Path) -> None:
    path = tmp_path / "engineroom.yaml"
    path.write_text("mine")
    arguments = ["init", "--model", "demo://smollm2", "--gpu", "cpu", "--to", str(path)]

    refused = CliRunner().invoke(cli, arguments)
    assert isinstance(refused.exception, InputError)
    assert path.read_text() == "mine"

    assert CliRunner().invoke(cli, [*arguments, "--force"]).exit_code == 0
    assert recipe.load(path).gpu == "cpu"


def test_json_and_yaml_hold_what_the_table_shows() -> None:
    runner = CliRunner()
    as_json = json.loads(runner.invoke(cli, ["gpus", "--output", "json"]).stdout)
    as_yaml = yaml.safe_load(runner.invoke(cli, ["gpus", "--output", "yaml"]).stdout)
    table = runner.invoke(cli, ["gpus"]).stdout

    assert as_json == as_yaml
    assert [line.split()[0] for line in table.splitlines()[1:]] == [gpu["name"] for gpu in as_json]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_its_completion_script(shell: str) -> None:
    done = CliRunner().invoke(cli, ["completion", shell])

    assert done.exit_code == 0
    assert f"_ENGINEROOM_COMPLETE={shell}_complete" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"), [("engineroom pu", {"publish", "pull"}), ("engineroom plan --gpu h", {"h100", "h200"})]
)
def test_completion_knows_verbs_and_gpu_classes(words: str, expected: set[str]) -> None:
    program = "from engineroom.cli.main import main; main()"
    variables = {
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
        "_ENGINEROOM_COMPLETE": "bash_complete",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | variables, capture_output=True, text=True, check=False
    )

    assert {line.split(",")[1] for line in done.stdout.splitlines()} == expected


def test_an_error_is_worded_as_where_found_fix() -> None:
    assert sentence(StoreError("it is full", where="/x", fix="free space")) == "/x: it is full; free space"
    assert sentence(EngineroomError("it broke")) == "it broke"


def test_every_error_has_an_exit_code_of_the_contract() -> None:
    def below(kind: type[EngineroomError]) -> list[type[EngineroomError]]:
        return [kind, *(found for child in kind.__subclasses__() for found in below(child))]

    assert {kind.exit_code for kind in below(EngineroomError)} == {2, 3, 4}


def test_the_list_of_verbs_needs_no_verb_to_be_imported() -> None:
    program = "import sys; from engineroom.cli import main; main.main(['--help'])"
    check = (
        "import atexit, sys; atexit.register(lambda: print([m for m in sys.modules if m.startswith('engineroom.')]));"
    )
    done = subprocess.run([sys.executable, "-c", check + program], capture_output=True, text=True, check=False)

    assert set(click.unstyle(done.stdout).splitlines()[-1].strip("[]").replace("'", "").split(", ")) == {
        "engineroom.errors",
        "engineroom.cli",
        "engineroom.cli.main",
    }


def test_long_work_says_in_a_log_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LOG_SECONDS", 0.0)

    with console.ConsoleProgress().task("publish", 4 << 20) as task:
        task.advance(1 << 20)

    assert re.search(r"publish: 1\.0 MiB of 4\.0 MiB, .*iB/s, \d+ s left", capsys.readouterr().err)
