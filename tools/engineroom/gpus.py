"""GPU classes: the facts of ``gpus.yaml``, and a clear answer to a class that is not there."""

import difflib
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from engineroom.documents import Strict
from engineroom.errors import InputError

Runtime = Literal["ctranslate2", "tensorrt", "pytorch"]
Precision = Literal["float32", "bfloat16", "float16", "fp8", "nvfp4", "int8", "int4", "int4_awq", "w4a8_awq"]

GIB = 1 << 30


class GpuClass(Strict):
    """One class of machines to run on. The comments of ``gpus.yaml`` say where each figure comes from."""

    name: str
    description: str = ""
    product: str = ""
    """NVIDIA's product name; empty for the class ``cpu``."""
    sm: str | None
    """Compute capability without the dot, such as ``90``; None for the class ``cpu``."""
    runtimes: list[Runtime] = Field(default=["tensorrt", "pytorch"])
    precisions: list[Precision]
    nominal_gib: float = 0
    visible_gib: float = 0
    """Memory that a process on the card can use, GiB; 0 for the class ``cpu`` (there: the host's limit)."""
    bandwidth_gbs: float = 0
    tflops: dict[Precision, float] = Field(default_factory=dict)
    link: str = ""
    link_gbs: float = 0
    gpus_per_node: int
    gfd_product: list[str] = Field(default_factory=list)
    instances: dict[Literal["aks", "eks", "gke"], list[str]] = Field(default_factory=dict)

    @property
    def is_cpu(self) -> bool:
        """True for the class without a GPU."""
        return self.sm is None

    @property
    def visible_bytes(self) -> int:
        """Memory of one GPU that can be planned with, bytes; for ``cpu`` the host's (or its cgroup's) limit."""
        return host_memory_bytes() if self.is_cpu else int(self.visible_gib * GIB)


@cache
def catalogue() -> dict[str, GpuClass]:
    """All classes by name, in the order of ``gpus.yaml``."""
    return {name: GpuClass.model_validate({"name": name, **facts}) for name, facts in _file()["classes"].items()}


def find(name: str, *, where: str = "--gpu") -> GpuClass:
    """The class called ``name``. Raises InputError for refused and unknown classes, naming the nearest."""
    classes, refused = catalogue(), _file()["refused"]
    lowered = name.lower()
    if lowered in classes:
        return classes[lowered]
    if lowered in refused:
        raise InputError(
            f"{name} is not supported: {refused[lowered]}", where=where, fix="choose SM 80 or newer, such as a10g or l4"
        )
    near = difflib.get_close_matches(lowered, classes, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]}? known: " if near else "use one of "
    raise InputError(f"unknown GPU class {name[:80]!r}", where=where, fix=fix + ", ".join(classes))


def host_memory_bytes() -> int:
    """Memory that this process may use: the machine's, or the cgroup's limit where that is smaller."""
    total = _meminfo_total()
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            total = min(total, int(limit.read_text()))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return total


def _meminfo_total() -> int:
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def _file() -> dict[str, dict[str, dict[str, object]]]:
    return yaml.safe_load(Path(__file__).with_name("gpus.yaml").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
