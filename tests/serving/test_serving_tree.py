import shutil
from pathlib import Path

import pytest

from engineroom.errors import IncompatibleError, InputError, ServerError
from engineroom.repository.record import BuildRecord
from engineroom.serving.environment import Environment, Interpreter
from engineroom.serving.server import check_runtime
from engineroom.serving.tree import VARIABLE, Program, find_program, server_tree


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """The server's files, in their places, without what is in them."""
    found = Environment(
        tmp_path, Interpreter(Path("/usr/bin/python3.12"), (3, 12, 1), Path("/opt/lib/libpython3.12.so.1.0"))
    )
    for name in ("bin/tritonserver", "backends/python/libtriton_python.so"):
        (found.triton / name).parent.mkdir(parents=True)
        (found.triton / name).write_text(name)
    for minor in ("3.11", "3.12"):
        stub = found.triton / "python_backend_stubs" / minor / "triton_python_backend_stub"
        stub.parent.mkdir(parents=True)
        stub.write_text(minor)
    return found


def test_the_stub_of_the_environments_python_is_placed_and_everything_is_executable(environment: Environment) -> None:
    program = server_tree(environment)

    stub = environment.triton / "backends" / "python" / "triton_python_backend_stub"
    assert stub.read_text() == "3.12"
    assert stub.stat().st_mode & 0o111
    assert program.binary.stat().st_mode & 0o111
    assert program.variables["PATH"].startswith(f"{environment.bin}:")
    assert program.variables["LD_LIBRARY_PATH"].startswith("/opt/lib")


def test_completing_the_tree_twice_changes_nothing(environment: Environment) -> None:
    server_tree(environment)
    stub = environment.triton / "backends" / "python" / "triton_python_backend_stub"
    before = stub.stat()

    server_tree(environment)

    assert (stub.stat().st_ino, stub.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_the_servers_python_does_not_see_the_tools_packages(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "tools")
    monkeypatch.setenv("VIRTUAL_ENV", "venv")

    variables = server_tree(environment).variables

    assert "PYTHONPATH" not in variables
    assert "VIRTUAL_ENV" not in variables


def test_a_damaged_environment_says_what_to_delete(environment: Environment) -> None:
    shutil.rmtree(environment.triton / "python_backend_stubs")

    with pytest.raises(ServerError) as refusal:
        server_tree(environment)

    assert str(environment.folder) in refusal.value.fix


def test_an_installed_tritonserver_is_preferred_and_no_environment_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "tritonserver"
    installed.write_text("#!/bin/sh\n")
    installed.chmod(0o755)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    program = find_program(tmp_path / "cache")

    assert program.binary == installed
    assert not program.private
    assert not (tmp_path / "cache").exists()


def test_the_variable_names_the_server_before_path_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = tmp_path / "my-triton"
    named.write_text("#!/bin/sh\n")
    monkeypatch.setenv(VARIABLE, str(named))

    with pytest.raises(InputError) as refusal:
        find_program(tmp_path / "cache")
    assert refusal.value.where == VARIABLE

    named.chmod(0o755)
    assert find_program(tmp_path / "cache").binary == named


def test_only_ctranslate2_runs_in_the_wheels_server(tmp_path: Path, record: BuildRecord) -> None:
    wheel = Program(tmp_path, (), {}, "Triton of the nvidia-pytriton wheel", private=True)
    image = Program(tmp_path, (), {}, "the installed tritonserver", private=False)
    on_gpu = record.model_copy(update={"inputs": record.inputs.model_copy(update={"runtime": "pytorch"})})

    check_runtime(record, tmp_path, wheel)
    check_runtime(on_gpu, tmp_path, image)
    with pytest.raises(IncompatibleError, match="runtime pytorch needs TensorRT-LLM"):
        check_runtime(on_gpu, tmp_path, wheel)


def test_runtime_tensorrt_is_served_only_where_its_configuration_points(tmp_path: Path, record: BuildRecord) -> None:
    image = Program(tmp_path, (), {}, "the installed tritonserver", private=False)
    on_gpu = record.model_copy(update={"inputs": record.inputs.model_copy(update={"runtime": "tensorrt"})})

    check_runtime(on_gpu, Path("/models"), image)
    with pytest.raises(IncompatibleError, match="below /models"):
        check_runtime(on_gpu, tmp_path, image)
