"""GPU classes: the facts of ``gpus.yaml``, the user's own on top, and a clear answer to a class that is not there."""

import difflib
import os
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from engineroom.documents import Strict, first_problem
from engineroom.errors import InputError

Runtime = Literal["ctranslate2", "tensorrt", "pytorch"]
Precision = Literal["float32", "bfloat16", "float16", "fp8", "nvfp4", "int8", "int4", "int4_awq", "w4a8_awq"]

GIB = 1 << 30


#: Names the user's own file, in the form of ``gpus.yaml``: prices, cards of your own, corrections.
OVERRIDE_VARIABLE = "ENGINEROOM_GPUS"

#: What an instance sees of the GB in its profile's name, where nobody looked: the lowest share that was measured
#: (H200, 1g.18gb: 16.0 GiB; the others of H100 and H200: 0.93 to 0.99).
_MIG_SEES = 0.88

_PROFILE = re.compile(r"(?P<slices>\d)g\.(?P<gb>\d+)gb")


class MigProfile(Strict):
    """One way to cut a card into instances."""

    count: int = Field(ge=1, le=7)
    """Instances of this profile that fit on one card."""
    visible_gib: float | None = None
    """Memory that an instance sees, GiB; None where it was not measured."""


class Price(Strict):
    """What one GPU costs for an hour, US dollars."""

    on_demand: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    spot: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    region: str = ""
    source: str = Field(min_length=1)
    """Who says so, such as the address of a price list."""
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    """When it was read."""

    @field_validator("date", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return value.isoformat() if hasattr(value, "isoformat") else value  # YAML reads 2026-11-27 as a date


class GpuClass(Strict):
    """One class of machines to run on. ``sources`` says where each group of figures comes from."""

    name: str
    description: str = ""
    product: str = ""
    """NVIDIA's product name; empty for the class ``cpu``."""
    aliases: list[str] = Field(default_factory=list)
    """Other names that people use; the product label works too."""
    sm: str | None
    """Compute capability without the dot, such as ``90``; None for the class ``cpu``."""
    host: Literal["amd64", "arm64"] = "amd64"
    """Architecture of the node's processor, and so of the images."""
    runtimes: list[Runtime] = Field(default=["tensorrt", "pytorch"])
    precisions: list[Precision]
    nominal_gib: float = 0
    visible_gib: float = 0
    """Memory that a process on the card can use, GiB; 0 for the class ``cpu`` (there: the host's limit)."""
    bandwidth_gbs: float = 0
    tflops: dict[Precision, float] = Field(default_factory=dict)
    link: str = ""
    link_gbs: float = 0
    """To another GPU over ``link``, GB/s one way."""
    link_gpus: int = 0
    """GPUs that ``link`` joins; 0: all of the node."""
    pcie_gbs: float = 0
    """To a GPU of the node that ``link`` does not reach, GB/s one way."""
    node_gbs: float = 0
    """To another node, GB/s one way for each GPU."""
    gpus_per_node: int
    gfd_product: list[str] = Field(default_factory=list)
    instances: dict[Literal["aks", "eks", "gke"], list[str]] = Field(default_factory=dict)
    mig: dict[str, MigProfile] = Field(default_factory=dict)
    """MIG profiles, such as ``3g.40gb``; the class of an instance is called ``h100-3g.40gb``."""
    mig_profile: str = ""
    """The profile, where this class is a MIG instance."""
    price: Price | None = None
    sources: dict[Literal["memory", "speed", "link", "mig", "instances"], str] = Field(default_factory=dict)

    @property
    def is_cpu(self) -> bool:
        """True for the class without a GPU."""
        return self.sm is None

    @property
    def visible_bytes(self) -> int:
        """Memory of one GPU that can be planned with, bytes; for ``cpu`` the host's (or its cgroup's) limit."""
        return host_memory_bytes() if self.is_cpu else int(self.visible_gib * GIB)

    @property
    def resource(self) -> str:
        """The Kubernetes resource that a pod asks for; MIG instances by profile (the device plugin's ``mixed``)."""
        return f"nvidia.com/mig-{self.mig_profile}" if self.mig_profile else "nvidia.com/gpu"

    def link_between(self, ranks: int) -> tuple[str, float]:
        """What ``ranks`` GPUs of a node talk over, and GB/s one way: the slowest link that all of them need."""
        if self.link_gpus and ranks > self.link_gpus:
            return "PCIe", self.pcie_gbs
        return self.link, self.link_gbs


@cache
def catalogue() -> dict[str, GpuClass]:
    """All classes by name, in the order of ``gpus.yaml``, then those of the user. Raises InputError.

    The user's file is the one that ``$ENGINEROOM_GPUS`` names, or ``engineroom/gpus.yaml`` in the user's folder for
    configuration. What it says of a class replaces what is shipped; a class that is not shipped is new.
    """
    path = override_path()
    own = _own_classes(path) if path else {}
    facts: dict[str, dict[str, Any]] = {name: dict(shipped) for name, shipped in _file()["classes"].items()}
    for name, changes in own.items():
        facts[name] = {**facts.get(name, {}), **changes}
    try:
        return {name: GpuClass.model_validate({"name": name, **values}) for name, values in facts.items()}
    except ValidationError as error:
        key, found = first_problem(error)
        wrong = error.errors(include_url=False)[0]
        name = next((name for name in own if _fails(name, facts[name])), "")
        raise InputError(
            "it has no such fact" if wrong["type"] == "extra_forbidden" else found,
            where=f"{path}: classes.{name}.{key}",
            fix="`engineroom gpus --output json` shows the facts of a class",
        ) from None


def shipped() -> dict[str, GpuClass]:
    """The classes without the user's own: what generated files are made of."""
    return {name: GpuClass.model_validate({"name": name, **facts}) for name, facts in _file()["classes"].items()}


def override_path() -> Path | None:
    """The user's own file of classes, where there is one."""
    named = os.environ.get(OVERRIDE_VARIABLE)
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        folder = Path(base) if Path(base).is_absolute() else Path.home() / ".config"
    except RuntimeError:  # no home folder
        return None
    path = folder / "engineroom" / "gpus.yaml"
    return path if path.is_file() else None


def find(name: str, *, where: str = "--gpu") -> GpuClass:
    """The class called ``name``: a name, an alias, a product label, or a MIG instance such as ``h100-3g.40gb``.

    Raises InputError for refused and unknown classes, naming the nearest.
    """
    classes, refused = catalogue(), _file()["refused"]
    lowered = name.lower()
    known = {other.lower(): gpu for gpu in classes.values() for other in (*gpu.gfd_product, *gpu.aliases)} | classes
    if lowered in known:
        return known[lowered]
    plain = re.sub(r"^(nvidia[- ])?(tesla[- ])?", "", lowered).split("-")[0]  # the label says Tesla-V100-SXM2-16GB
    if plain in refused:
        raise InputError(
            f"{name[:80]} is not supported: {refused[plain]}",
            where=where,
            fix="choose SM 80 or newer, such as a10g or l4",
        )
    card, dash, profile = lowered.rpartition("-")
    if dash and card in known and _PROFILE.fullmatch(profile):
        return _instance(known[card], profile, where=where)
    near = difflib.get_close_matches(lowered, known, n=1, cutoff=0.5)
    fix = f"did you mean {known[near[0]].name}? known: " if near else "use one of "
    raise InputError(f"unknown GPU class {name[:80]!r}", where=where, fix=fix + ", ".join(classes))


def _instance(card: GpuClass, profile: str, *, where: str) -> GpuClass:
    """A MIG instance as a class of its own: its memory, and its share of the card's bandwidth and arithmetic.

    Bandwidth goes by eighths of the card's memory, arithmetic by its slices (NVIDIA, MIG user guide, "Fraction of
    Memory", "Fraction of SMs"; RTX PRO 6000: quarters). Instances cannot reach each other's memory.
    """
    if profile not in card.mig:
        has = ", ".join(f"{card.name}-{known}" for known in card.mig)
        raise InputError(
            f"{card.name} has no MIG profile {profile}",
            where=where,
            fix=f"use {card.name}" + (f" or one of {has}" if has else ": it cannot be cut"),
        )
    parts = _PROFILE.fullmatch(profile)
    assert parts is not None
    slices, gb = int(parts["slices"]), int(parts["gb"])
    sees = card.mig[profile].visible_gib or round(gb * _MIG_SEES, 2)
    whole = 4 if card.sm == "120" else 7
    # The profile's name rounds its memory; the nearest eighth of the card is what it is made of.
    memory = max(1, round(8 * gb / card.nominal_gib)) / 8
    return card.model_copy(
        update={
            "name": f"{card.name}-{profile}",
            "product": f"{card.product} MIG {profile}",
            "aliases": [],
            "nominal_gib": float(gb),
            "visible_gib": sees,
            "bandwidth_gbs": card.bandwidth_gbs * memory,
            "tflops": {precision: value * slices / whole for precision, value in card.tflops.items()},
            "link": "none",
            "link_gbs": 0.0,
            "link_gpus": 0,
            "gpus_per_node": 1,
            "mig": {},
            "mig_profile": profile,
            # A share of the card's price, as its instances share it.
            "price": card.price and card.price.model_copy(update=_shared(card.price, card.mig[profile].count)),
        }
    )


def _shared(price: Price, count: int) -> dict[str, float | None]:
    return {name: value and value / count for name, value in (("on_demand", price.on_demand), ("spot", price.spot))}


def _own_classes(path: Path) -> dict[str, dict[str, Any]]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, ValueError, yaml.YAMLError) as error:
        words = getattr(error, "strerror", None) or " ".join(str(error).split())[:100]
        raise InputError(f"cannot read it ({words})", where=str(path), fix=_FORM) from None
    if data is None:
        return {}
    classes = data.get("classes") if isinstance(data, dict) else None
    if not isinstance(classes, dict) or set(data) - {"classes"}:
        raise InputError("it should hold one mapping, `classes`", where=str(path), fix=_FORM)
    for name, facts in classes.items():
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(?:[.-][a-z0-9]+)*", name):
            raise InputError(
                f"{str(name)[:40]!r} is no name of a class", where=str(path), fix="use a-z, 0-9 and dashes"
            )
        if not isinstance(facts, dict) or not all(isinstance(key, str) for key in facts):
            raise InputError("it should be a mapping of facts", where=f"{path}: classes.{name}", fix=_FORM)
    return classes


_FORM = 'such as {classes: {h100: {price: {on_demand: 2.5, source: "our contract", date: "2026-11-01"}}}}'


def _fails(name: str, facts: dict[str, Any]) -> bool:
    try:
        GpuClass.model_validate({"name": name, **facts})
    except ValidationError:
        return True
    return False


def refused() -> dict[str, str]:
    """Well-known cards that no runtime supports any more, by name, and the reason."""
    return {name: str(reason) for name, reason in _file()["refused"].items()}


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
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def _file() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(Path(__file__).with_name("gpus.yaml").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
