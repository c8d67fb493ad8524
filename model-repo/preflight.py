"""Preflight: may this engine run here? Asked in the server's own image, before the server starts.

Compares ``requires`` of build-record.json with the GPUs and the driver (nvidia-smi), the versions of TensorRT-LLM and
TensorRT, /dev/shm, and the sizes of the artifact's files. A mismatch that a server reports minutes later, as a crash
in C++, is one sentence here, also in the pod's termination message.

    python3 preflight.py [--record build-record.json] [--gpus N] [--skip CHECK] [--termination-log /dev/termination-log]

Exit 0: all is well. Exit 2: no readable build record. Exit 3: something does not fit.
Standard library only, Python 3.8 and later: it must run in any server image.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

#: Kubernetes keeps 4096 bytes of a termination message.
_LONGEST_MESSAGE = 4000


class Problem(Exception):  # noqa: N818  (it is a finding, not a failure of this program)
    """What was found, what is wanted and what to do, which together make one sentence."""


class Gpu(NamedTuple):
    """One line of nvidia-smi."""

    sm: str
    """``90`` for compute capability 9.0."""
    driver: str
    name: str


class Place(NamedTuple):
    """Where the server would run, and what for."""

    record: dict[str, Any]
    gpus_wanted: int
    shm: Path
    tree: Path


def read_gpus() -> list[Gpu]:
    """The GPUs that this container sees. Raises Problem where nvidia-smi does not answer."""
    command = ["nvidia-smi", "--query-gpu=compute_cap,driver_version,name", "--format=csv,noheader"]
    fix = "give the pod nvidia.com/gpu in its limits and run it on a node with the NVIDIA driver and container toolkit"
    try:
        # Bytes that are no text (a broken driver prints such) must not end in a traceback.
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False)
    except FileNotFoundError:
        raise Problem("a GPU is wanted, but there is no nvidia-smi here, so none is visible; " + fix) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Problem(f"a GPU is wanted, but nvidia-smi does not answer ({error}); {fix}") from None
    output = done.stdout.decode(errors="replace").strip()
    if done.returncode:
        last = output.splitlines()[-1] if output else f"exit code {done.returncode}"
        raise Problem(f"a GPU is wanted, but nvidia-smi failed ({last}); {fix}")
    gpus = []
    for line in output.splitlines():
        fields = [field.strip() for field in line.split(",", 2)]
        if len(fields) == 3 and re.fullmatch(r"\d+\.\d+", fields[0]):
            gpus.append(Gpu(fields[0].replace(".", ""), fields[1], fields[2]))
    if not gpus:
        raise Problem(f"a GPU is wanted, but nvidia-smi lists none; {fix}")
    return gpus


def check_gpus(place: Place) -> str:
    """As many GPUs as this pod has ranks."""
    gpus, world_size = read_gpus(), place.record["requires"]["world_size"]
    if len(gpus) < place.gpus_wanted:
        raise Problem(
            f"{len(gpus)} GPU(s) are visible and {place.gpus_wanted} are wanted (world size {world_size}); set "
            f"nvidia.com/gpu: {place.gpus_wanted} in the pod's limits, or build for fewer GPUs"
        )
    return f"{len(gpus)} × {gpus[0].name}"


def check_sm(place: Place) -> str:
    """An engine runs on the architecture that it was built for and on no other."""
    wanted = place.record["requires"]["sm"].replace(".", "")
    for gpu in read_gpus()[: place.gpus_wanted]:
        # "90" and "90a" are one architecture: the letter is a compiler's target.
        if gpu.sm != wanted.rstrip("af"):
            raise Problem(
                f"this GPU is {gpu.name} (SM {gpu.sm}) and the engine was built for SM {wanted}; schedule the pod on "
                "that GPU, or build an engine for this one"
            )
    return f"SM {wanted}"


def check_driver(place: Place) -> str:
    """The driver that the image's CUDA wants."""
    found, wanted = read_gpus()[0].driver, place.record["requires"]["driver_min"]
    if _numbers(found) < _numbers(wanted):
        raise Problem(
            f"the driver is {found} and {wanted} or later is wanted; update the node's driver, or, where CUDA forward "
            "compatibility is known to work, pass --skip driver"
        )
    return f"driver {found}"


def check_trtllm(place: Place) -> str:
    """An engine loads in no other release of TensorRT-LLM."""
    return _check_version("TensorRT-LLM", "tensorrt_llm", "TRT_LLM_VERSION", place.record["requires"]["trtllm"], place)


def check_tensorrt(place: Place) -> str:
    """An engine loads in no other version of TensorRT."""
    return _check_version("TensorRT", "tensorrt", "TRT_VERSION", place.record["requires"]["tensorrt"], place)


def check_shm(place: Place) -> str:
    """Triton's Python backend and NCCL put their buffers into shared memory; too little ends in a bus error."""
    wanted = place.record["requires"]["shm_bytes"]
    try:
        stat = os.statvfs(str(place.shm))
    except OSError as error:
        raise Problem(
            f"{place.shm} cannot be looked at ({error.strerror}); mount an emptyDir of medium Memory there"
        ) from None
    size = stat.f_blocks * stat.f_frsize
    if size < wanted:
        mebibytes = -(-wanted // (1 << 20))
        raise Problem(
            f"{place.shm} has {size >> 20} MiB and {mebibytes} MiB are wanted; mount an emptyDir of medium Memory "
            f"there with sizeLimit {mebibytes}Mi (docker: --shm-size={mebibytes}m)"
        )
    return f"shm {size >> 20} MiB"


def check_files(place: Place) -> str:
    """All files there, none cut short. Their digests were checked when they were pulled."""
    for file in place.record["files"]:
        path = place.tree / file["path"]
        try:
            size = path.stat().st_size
        except (OSError, ValueError) as error:
            raise Problem(f"{path} cannot be read ({error}); pull the artifact again") from None
        if size != file["size"]:
            raise Problem(f"{path} has {size} bytes and {file['size']} are wanted; pull the artifact again")
    return f"{len(place.record['files'])} files"


def _check_version(what: str, package: str, variable: str, wanted: str, place: Place) -> str:
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        found = os.environ.get(variable, "")
    image = place.record["inputs"].get("image")
    fix = f"use the image {image}" if image else f"use an image with {what} {wanted}"
    if not found:
        raise Problem(f"{what} {wanted} is wanted and none is in this image; {fix}")
    # 10.14.1 is wanted and 10.14.1.48 found: the wanted numbers decide. Local parts (+cuda13.1) say nothing here.
    numbers = _numbers(wanted)
    if _numbers(found)[: len(numbers)] != numbers or _prerelease(found) != _prerelease(wanted):
        raise Problem(f"{what} is {found} here and {wanted} is wanted; {fix}, or build with {what} {found}")
    return f"{what} {found}"


def _numbers(version: str) -> tuple[int, ...]:
    plain = re.match(r"\d+(?:\.\d+)*", version.strip().lstrip("v"))
    return tuple(int(number) for number in plain.group().split(".")) if plain else ()


def _prerelease(version: str) -> str:
    found = re.search(r"\d(rc|a|b|\.dev)\.?\d+", version.split("+", maxsplit=1)[0])
    return found.group()[1:] if found else ""


#: In order of how early a mismatch would stop the server.
CHECKS: dict[str, Callable[[Place], str]] = {
    "files": check_files,
    "gpus": check_gpus,
    "sm": check_sm,
    "driver": check_driver,
    "trtllm": check_trtllm,
    "tensorrt": check_tensorrt,
    "shm": check_shm,
}
_NEEDS = {"sm": "sm", "driver": "driver_min", "trtllm": "trtllm", "tensorrt": "tensorrt"}


def applies(check: str, record: dict[str, Any]) -> bool:
    """Whether the build record wants what ``check`` looks at."""
    if check == "gpus":
        return bool(record["inputs"]["runtime"] != "ctranslate2")
    return check not in _NEEDS or record["requires"].get(_NEEDS[check]) is not None


def read_record(path: Path) -> dict[str, Any]:
    """The build record, as far as it is used here. Raises ValueError or OSError."""
    record = json.loads(path.read_bytes())
    try:
        requires, files = record["requires"], record["files"]
        texts = [requires.get(key) for key in _NEEDS.values()]
        right = (
            record["schema"] == 1
            and isinstance(record["inputs"]["runtime"], str)
            and isinstance(requires["world_size"], int)
            and isinstance(requires["shm_bytes"], int)
            and all(text is None or isinstance(text, str) for text in texts)
            and all(isinstance(file["path"], str) and isinstance(file["size"], int) for file in files)
        )
    except (KeyError, TypeError, AttributeError):
        right = False
    if not right:
        raise ValueError("it is no build record of schema 1")
    return dict(record)


def run(place: Place, skipped: list[str]) -> tuple[list[str], list[str]]:
    """What is well, and what is not."""
    good: list[str] = []
    bad: list[str] = []
    for name, check in CHECKS.items():
        if name in skipped:
            good.append(f"{name} skipped")
        elif applies(name, place.record):
            try:
                good.append(check(place))
            except Problem as problem:
                if str(problem) not in bad:  # without nvidia-smi three checks would say the same
                    bad.append(str(problem))
    return good, bad


def main(arguments: list[str] | None = None) -> int:
    """Check, say it, return the exit code."""
    parser = argparse.ArgumentParser(prog="preflight.py", description="May this engine run here?")
    parser.add_argument("--record", type=Path, default=Path(__file__).absolute().parent / "build-record.json")
    parser.add_argument("--gpus", type=int, help="GPUs that this pod must see (default: the world size)")
    parser.add_argument("--shm", type=Path, default=Path("/dev/shm"), help=argparse.SUPPRESS)  # noqa: S108
    parser.add_argument("--skip", action="append", default=[], choices=list(CHECKS), help="leave a check out")
    parser.add_argument("--termination-log", type=Path, default=Path("/dev/termination-log"))
    given = parser.parse_args(arguments)
    try:
        record = read_record(given.record)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).split("\n")[0]
        return _fail(2, f"{given.record} cannot be read ({reason}); pull the artifact again", given.termination_log)
    wanted = record["requires"]["world_size"] if given.gpus is None else given.gpus
    good, bad = run(Place(record, wanted, given.shm, given.record.absolute().parent), given.skip)
    if bad:
        others = f" (and {len(bad) - 1} more: {' | '.join(bad[1:])})" if len(bad) > 1 else ""
        return _fail(3, bad[0] + others, given.termination_log)
    sys.stdout.write(f"preflight: ok: {', '.join(good)}\n")
    return 0


def _fail(code: int, sentence: str, log: Path) -> int:
    line = f"preflight: {sentence}\n"
    sys.stderr.write(line)
    try:
        # Opened, not made: outside of Kubernetes there is no such file and none is wanted.
        with open(str(log), "r+b") as file:  # noqa: PTH123
            file.truncate(0)
            file.write(line.encode()[:_LONGEST_MESSAGE])
    except OSError:
        pass  # the sentence is on stderr too
    return code


if __name__ == "__main__":
    sys.exit(main())
