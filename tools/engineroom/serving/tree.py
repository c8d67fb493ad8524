"""Which Triton server is started, and how it finds its parts.

An installed ``tritonserver`` is preferred: then this is NVIDIA's image, or a build of the user's own,
and nothing has to be made. Otherwise it is the server inside the nvidia-pytriton wheel, in the layout
that the wheel has: its libraries are found by the run paths of its binaries, so nothing is copied but
the one stub that fits the environment's Python.
"""

import filecmp
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engineroom.errors import InputError, ServerError
from engineroom.progress import QUIET, Progress
from engineroom.serving.environment import Environment, clean_variables, ensure_environment

VARIABLE = "ENGINEROOM_TRITONSERVER"


@dataclass(frozen=True)
class Program:
    """A Triton server that can be started."""

    binary: Path
    arguments: tuple[str, ...]
    """Where its backends and caches are; empty where it knows."""
    variables: Mapping[str, str]
    """Its whole environment."""
    title: str
    """For people."""
    private: bool
    """Whether it is the wheel's server: it has the Python backend only, and only ctranslate2 to compute with."""


def find_program(cache: Path, *, progress: Progress = QUIET) -> Program:
    """The server to start: $ENGINEROOM_TRITONSERVER, ``tritonserver`` on PATH, or the wheel's, made if need be.

    Raises :class:`InputError` where the variable names no program, and what :func:`ensure_environment` raises.
    """
    named = os.environ.get(VARIABLE)
    if named and not os.access(named, os.X_OK):
        raise InputError(
            f"{named} is not a program", where=VARIABLE, fix="name the tritonserver binary, or unset the variable"
        )
    installed = named or shutil.which("tritonserver")
    if installed:
        program = Program(Path(installed), (), dict(os.environ), f"the installed {installed}", private=False)
    else:
        program = server_tree(ensure_environment(cache, progress=progress))
    progress.say(f"server: {program.title}")
    return program


def server_tree(environment: Environment) -> Program:
    """Complete the wheel's server inside ``environment`` and say how it starts. Done twice, it changes nothing."""
    triton = environment.triton
    major, minor, _ = environment.interpreter.version
    stub = triton / "python_backend_stubs" / f"{major}.{minor}" / "triton_python_backend_stub"
    placed = triton / "backends" / "python" / stub.name
    try:
        if not placed.exists() or not filecmp.cmp(stub, placed, shallow=False):
            # Beside and renamed: another server may be starting with the one that is there.
            beside = placed.with_name(f".{stub.name}.{os.getpid()}")
            shutil.copyfile(stub, beside)
            beside.chmod(0o755)
            beside.replace(placed)
        binary = triton / "bin" / "tritonserver"
        if not os.access(binary, os.X_OK):
            binary.chmod(0o755)
    except OSError as error:
        raise ServerError(
            f"the server's private environment is damaged ({error.strerror or error})",
            where=str(error.filename or triton),
            fix=f"delete {environment.folder} and run it again",
        ) from None
    variables = clean_variables() | {
        # The stub's embedded Python finds its environment by the first python on PATH.
        "PATH": f"{environment.bin}:{os.environ.get('PATH') or os.defpath}",
        "LD_LIBRARY_PATH": ":".join(
            filter(None, (str(environment.interpreter.libpython.parent), os.environ.get("LD_LIBRARY_PATH")))
        ),
        "HOME": os.environ.get("HOME") or str(environment.folder),
    }
    arguments = (
        f"--backend-directory={triton / 'backends'}",
        f"--cache-directory={triton / 'caches'}",
    )
    return Program(binary, arguments, variables, "Triton of the nvidia-pytriton wheel", private=True)
