"""Bad input at the command line: one sentence, the right exit code, no traceback, nothing written."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engineroom import recipe
from engineroom.deploy.work import Work
from engineroom.errors import StoreError

Run = Callable[..., "subprocess.CompletedProcess[str]"]
CONFIGS = Path(__file__).parent.parent / "engines" / "configs"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run ``engineroom`` in an empty folder with an empty cache."""
    folder = tmp_path / "here"
    folder.mkdir()

    def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        environment = os.environ | {"ENGINEROOM_CACHE": str(tmp_path / "cache"), "COLUMNS": "200"} | variables
        return subprocess.run(
            [sys.executable, "-m", "engineroom", *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["fetch"], 2, "write one with `engineroom init`"),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
        (["plan", "--frobnicate"], 2, "see `engineroom plan --help`"),
        (["init", "--model", "demo://smollm2", "--gpu", "h10"], 2, "did you mean h100"),
        (["init", "--model", "demo://smollm2", "--gpu", "t4"], 2, "dropped SM 75"),
        (["init", "--model", "demo://smollm3", "--gpu", "cpu"], 2, "demo://smollm2"),
        (["init", "--model", "https://huggingface.co/org/name", "--gpu", "h100"], 2, "write hf://org/name"),
        (["plan", "--model", "demo://smollm2", "--gpu", "cpu"], 2, "runtime"),
        (["fetch", "--set", "limits"], 2, "is not KEY=VALUE"),
        (["fetch", "--set", "limits..x=1"], 2, "is not KEY=VALUE"),
        (["init", "--model", "demo://smollm2", "--gpu", "cpu", "--publish", "nonsense"], 2, "it has no scheme"),
        (["init", "--model", "demo://smollm2", "--gpu", "a|b"], 2, "unknown GPU class 'a|b'"),
        (["init", "--model", "demo://smollm2", "--gpu", "a\nb\x1b[31m"], 2, r"'a\nb\x1b[31m'"),
        (["completion"], 2, "Choose from: bash, zsh, fish"),
        (["ask", "hi", "--model", "m", "--timeout", "nan"], 2, "no number to count with"),
        (["ask", "hi", "--model", "m", "--seed", str(2**64)], 2, "--seed"),
        (["serve", "nowhere"], 2, "run `engineroom assemble` first"),
        (["pull", "file:///srv/m:v1"], 2, "one of --to and --cache"),
        (["pull", "file:///srv/m:v1", "--to", "a", "--cache", "b"], 2, "one of --to and --cache"),
        (["pull", "file:///srv/m:v1", "--to", "a", "--cache-size", "1GB"], 2, "--cache-size is for --cache"),
        (["pull", "file:///srv/m:v1", "--cache", "b", "--cache-size", "a lot"], 2, "write 500GB or 64GiB"),
        (["pull", "oci://127.0.0.1:9/m:v1", "--to", "a"], 4, "check host and port"),
        (["list", "oci://registry.example/Team"], 2, "is no repository of a registry"),
        (["build", "--use_gpt_attention_plugin", "float16"], 2, "--gpt_attention_plugin auto"),
        (["build", "--max_output_len", "100"], 2, "limits.max_output_len"),
        (["build", "build.py", "--model_dir", "x"], 2, "model.source"),
        (["pull", "models/llama", "--to", "x"], 2, "it has no scheme"),
        (["pull", "file:///nowhere/llama:v1", "--to", "x"], 4, "engineroom list"),
        (["verify", "nowhere"], 2, "there is no such folder"),
        (["ask", "hi", "--model", "m", "--port", "1"], 4, "engineroom serve"),
        (["up", "a.yaml", "--recipe", "b.yaml"], 2, "leave out a.yaml or --recipe b.yaml"),
        (["up", "a.yaml"], 2, "a.yaml: cannot read it"),
        (
            ["up", "--model", "demo://smollm2", "--gpu", "h100", "--runtime", "tensorrt", "--precision", "fp8"],
            2,
            "publish",
        ),
    ],
)
def test_a_refusal_is_one_sentence(run: Run, tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    done = run(*arguments)

    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert list((tmp_path / "here").iterdir()) == []


def test_a_stage_that_comes_too_early_says_which_comes_first(run: Run) -> None:
    run("init", "--model", "demo://smollm2", "--gpu", "cpu")

    for verb, first in (("plan", "fetch"), ("build", "fetch"), ("publish", "assemble"), ("values", "assemble")):
        arguments = ["--to", "file:///x/y:v1"] if verb == "publish" else []
        done = run(verb, *arguments)
        assert done.returncode == 2
        assert f"run `engineroom {first}` first" in done.stderr


def test_a_file_in_the_way_of_the_work_folder_is_named(run: Run, tmp_path: Path) -> None:
    run("init", "--model", str(CONFIGS / "llama-3.1-8b"), "--gpu", "h100")
    (tmp_path / "here" / ".engineroom").write_text("mine")

    done = run("plan")

    assert done.returncode == 2
    assert (tmp_path / "here" / ".engineroom").read_text() == "mine"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("gpu=2020-99-99", "unknown GPU class '2020-99-99'"),
        ("limits=" + "[" * 5000, "limits"),
        ("gpu=!!int x", "unknown GPU class '!!int x'"),
        ("limits.max_batch_size=", "found nothing"),
        ("model.revision=1.0", "put it in quotes"),
        ("runtime=a|b", "found 'a|b'"),
    ],
)
def test_a_setting_may_be_anything(run: Run, setting: str, words: str) -> None:
    run("init", "--model", "demo://smollm2", "--gpu", "cpu")

    done = run("plan", "--set", setting)

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_init_quotes_what_yaml_would_read_as_something_else(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "here" / "we: #ird"
    folder.mkdir()

    assert run("init", "--model", str(folder), "--gpu", "cpu", "--to", "a.yaml").returncode == 0
    assert recipe.load(tmp_path / "here/a.yaml").model.source == str(folder)
    assert run("init", "--model", "hf://org/name@1.0", "--gpu", "cpu", "--to", "b.yaml").returncode == 0
    assert recipe.load(tmp_path / "here/b.yaml").model.revision == "1.0"


def test_a_work_folder_below_a_file_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "here" / "file").write_text("mine")

    with pytest.raises(StoreError, match="Not a directory"):
        Work(tmp_path / "here" / "file" / "left").save_engine(tmp_path)

    Work(tmp_path / "here" / "left").save_engine(tmp_path)
    assert (tmp_path / "here/left/engine").resolve() == tmp_path


@pytest.mark.parametrize("arguments", ["gpus", "gpus --output json", "--help"])
def test_a_full_standard_output_is_a_failure(arguments: str) -> None:
    command = f"{sys.executable} -m engineroom {arguments} > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert "standard output" in done.stderr


def test_a_folder_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    command = f'mkdir gone && cd gone && rmdir ../gone && exec "{sys.executable}" -m engineroom list'
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: the current folder is gone; change to one that is there"


def test_a_reader_that_leaves_early_is_no_error(run: Run, tmp_path: Path) -> None:
    command = f"{sys.executable} -m engineroom gpus --output json | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)

    assert (done.stdout, done.stderr) == ("[\n", "")


@pytest.mark.parametrize(("model", "split"), [("llama-3.1-8b", 1), ("llama-3.1-70b", 4)])
def test_a_dry_run_for_a_bare_config_is_a_script_that_bash_accepts(run: Run, model: str, split: int) -> None:
    done = run(
        "build", "--dry-run", "--model", str(CONFIGS / model), "--gpu", "h100", "--runtime", "tensorrt",
        "--precision", "fp8", "--set", f"parallelism.tensor={split}",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert f"--tp_size {split}" in done.stdout
    assert "--qformat fp8" in done.stdout
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=False).returncode == 0
