import importlib.metadata
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import engineroom
from engineroom.errors import ServerError
from engineroom.serving import environment
from engineroom.serving.environment import MARKER, REQUIREMENTS, Marker, ensure_environment, find_interpreter

MAKE = """
import sys
from pathlib import Path
from engineroom.serving.environment import ensure_environment
class Said:
    def say(self, text): print(text, flush=True)
    def task(self, title, total, *, unit="B"):
        import contextlib
        return contextlib.nullcontext(self)
    def advance(self, amount): print("package", flush=True)
print(ensure_environment(Path(sys.argv[1]), progress=Said()).folder)
"""


def pins() -> dict[str, str]:
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def start_making(cache: Path) -> "subprocess.Popen[str]":
    variables = os.environ | {"PYTHONPATH": str(Path(engineroom.__file__).parent.parent)}
    return subprocess.Popen([sys.executable, "-c", MAKE, str(cache)], stdout=subprocess.PIPE, text=True, env=variables)


def lay_out(cache: Path, *, requirements: str) -> Path:
    """The files of a finished environment, as far as finding one looks at them."""
    folder = cache / "runtime" / "0123"
    for name in ("bin/python", "lib/python3.12/site-packages/pytriton/tritonserver/bin/tritonserver"):
        (folder / "venv" / name).parent.mkdir(parents=True)
        (folder / "venv" / name).touch()
    library = folder / "libpython3.12.so.1.0"
    library.touch()
    marker = Marker(
        requirements=requirements, executable="/usr/bin/python3.12", version=[3, 12, 1], libpython=str(library)
    )
    marker.write(folder / MARKER)
    return folder


@pytest.mark.parametrize("package", ["ctranslate2", "tokenizers"])
def test_the_server_computes_with_the_versions_that_the_tool_builds_with(package: str) -> None:
    assert pins()[package] == importlib.metadata.version(package)


def test_the_servers_numpy_is_below_2() -> None:
    assert pins()["numpy"].startswith("1.26.")


def test_an_interpreter_is_found_with_its_own_shared_library() -> None:
    found = find_interpreter()

    assert found.version[:2] in ((3, 11), (3, 12))
    assert found.libpython.name == f"libpython3.{found.version[1]}.so.1.0"
    assert found.libpython.exists()


@pytest.mark.parametrize(
    ("version", "folders", "obstacle"),
    [
        ([3, 13, 0], ["/usr/lib"], "/opt/python is 3.13"),
        ([3, 12, 1], ["/nonexistent", None], "/opt/python is 3.12 without a shared library"),
    ],
)
def test_without_an_interpreter_that_fits_the_error_says_what_there_is_and_what_to_install(
    version: list[int], folders: list[str], obstacle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    facts = {"executable": "/opt/python", "version": version, "folders": folders, "venv": True}
    other = tmp_path / "python"
    other.write_text(f"#!/bin/sh\necho '{json.dumps(facts)}'\n")
    other.chmod(0o755)
    broken = tmp_path / "shim"
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    monkeypatch.setattr(environment, "_candidates", lambda: iter([broken, other]))

    with pytest.raises(ServerError) as refusal:
        find_interpreter()

    assert obstacle in refusal.value.found
    assert "apt install" in refusal.value.fix


def test_a_finished_environment_is_reused_without_starting_a_program(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, requirements=environment._pins())
    before = resource.getrusage(resource.RUSAGE_CHILDREN)

    found = ensure_environment(tmp_path)

    assert found.folder == folder
    assert resource.getrusage(resource.RUSAGE_CHILDREN) == before


def test_an_environment_counts_only_with_its_marker_and_pins_and_interpreter(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, requirements=environment._pins())
    root = tmp_path / "runtime"
    assert environment._find(root)

    marker = (folder / MARKER).read_bytes()
    (folder / MARKER).unlink()
    assert environment._find(root) is None
    (folder / MARKER).write_bytes(marker[:-10])
    assert environment._find(root) is None
    (folder / MARKER).write_bytes(marker.replace(environment._pins().encode(), b"0" * 64))
    assert environment._find(root) is None
    (folder / MARKER).write_bytes(marker)
    (folder / "libpython3.12.so.1.0").unlink()
    assert environment._find(root) is None


def test_a_pip_that_finds_nothing_is_one_sentence_and_leaves_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    with pytest.raises(ServerError) as refusal:
        ensure_environment(tmp_path / "cache")

    assert "No matching distribution found for ctranslate2" in refusal.value.found
    assert "\n" not in str(refusal.value)
    assert not list((tmp_path / "cache").rglob(MARKER))


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, no folder")

    with pytest.raises(ServerError) as refusal:
        ensure_environment(tmp_path / "cache")

    assert "ENGINEROOM_CACHE" in refusal.value.fix


@pytest.mark.local
def test_a_killed_creation_is_made_again_and_two_processes_make_it_once(tmp_path: Path) -> None:
    killed = start_making(tmp_path)
    assert killed.stdout
    while killed.stdout.readline().strip() != "package":
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.wait(10)
    killed.stdout.close()
    assert not list(tmp_path.rglob(MARKER))

    outputs = [process.communicate(timeout=200)[0] for process in [start_making(tmp_path), start_making(tmp_path)]]

    assert sum("making /" in output for output in outputs) == 1
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]
    made = ensure_environment(tmp_path)
    imports = "import ctranslate2, numpy, tokenizers; print(numpy.__version__)"
    assert subprocess.check_output([made.bin / "python", "-c", imports], text=True).strip() == pins()["numpy"]
