"""Options that several verbs share, each written once."""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from engineroom import gpus
from engineroom.cli.console import ConsoleProgress
from engineroom.deploy.work import WORK, Work
from engineroom.errors import InputError, RecipeError
from engineroom.recipe import DEFAULT_PATH, Recipe, load, parse, read_yaml

Function = TypeVar("Function", bound=Callable[..., Any])

#: Flags that override a key of the recipe.
OVERRIDES = {
    "model": ("model.source", "Checkpoint: hf://org/name, demo://smollm2 or a folder."),
    "revision": ("model.revision", "Branch, tag or commit on the Hub."),
    "gpu": ("gpu", "GPU class; `engineroom gpus` lists them."),
    "runtime": ("runtime", "tensorrt, pytorch or ctranslate2."),
    "precision": ("precision", "Of the weights: bfloat16, fp8, int8, …"),
}

output_option = click.option(
    "--output", "-o", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True, help="Format."
)


#: Below the help of every verb that opens a store.
STORE_SETTINGS = (
    "Stores are file://, s3://, gs://, az:// and oci:// (registries). Endpoints and credentials come from the standard "
    "variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …, GOOGLE_…, AZURE_STORAGE_…), for registries from Docker's "
    "configuration."
)

plain_http_option = click.option(
    "--plain-http", is_flag=True, help="Talk to a registry (oci://) without TLS; always done on this machine's own."
)


class Duration(click.ParamType[float]):
    """A span of time: ``90s``, ``30m``, ``24h``, ``7d``, or seconds; its value is in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds. Raises click.BadParameter."""
        found = re.fullmatch(r"(\d{1,9})([smhd]?)", str(value))
        if not found:
            self.fail(f"{value!r} is no time; write 90s, 30m, 24h or 7d.", param, ctx)
        return int(found[1]) * {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[found[2]]


class Finite(click.FloatRange):
    """A number within a range; unlike click's own, neither ``nan`` nor ``inf``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number. Raises click.BadParameter."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no number to count with.", param, ctx)
        return number


class Size(click.ParamType[int]):
    """Bytes: ``500GB`` (powers of 1000), ``64GiB`` or ``64Gi`` (of 1024, as Kubernetes writes it), or a number."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes. Raises click.BadParameter."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?)\s*(?:([kKMGTP])(i?))?B?", str(value))
        if not match:
            self.fail(f"{value!r} is no size; write 500GB or 64GiB.", param, ctx)
        number, unit, binary = match.groups()
        return int(float(number) * (1024 if binary else 1000) ** ("KMGTP".index(unit.upper()) + 1 if unit else 0))


@dataclass(frozen=True)
class Job:
    """One recipe, its work folder and the user's cache."""

    recipe: Recipe
    work: Work
    cache: Path
    progress: ConsoleProgress


def recipe_options(function: Function) -> Function:
    """``--recipe``, ``--work``, ``--set`` and the flags that override keys; see :func:`job`."""
    for name, (key, text) in reversed(OVERRIDES.items()):
        shell = complete_gpu if name == "gpu" else None
        function = click.option(f"--{name}", metavar="TEXT", shell_complete=shell, help=f"{text} Overrides {key}.")(
            function
        )
    function = click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override any key: --set limits.max_batch_size=8."
    )(function)
    function = click.option(
        "--work",
        type=click.Path(path_type=Path, file_okay=False),
        help=f"Work folder; default: {WORK} beside the recipe.",
    )(function)
    return click.option(
        "--recipe", "-f", "recipe_path", type=click.Path(path_type=Path), help=f"The recipe; default: {DEFAULT_PATH}."
    )(function)


def job(recipe_path: Path | None, work: Path | None, settings: tuple[str, ...], flags: dict[str, str | None]) -> Job:
    """What the options of :func:`recipe_options` describe. Without a file the flags alone can be the recipe."""
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not all(key.split(".")):
            raise RecipeError(f"{setting!r} is not KEY=VALUE", where="--set", fix="write --set limits.max_batch_size=8")
        overrides[key] = _value(value)
    overrides |= {OVERRIDES[name][0]: value for name, value in flags.items() if name in OVERRIDES and value is not None}
    path = recipe_path or DEFAULT_PATH
    if recipe_path is None and not path.exists() and "model.source" in overrides:
        recipe = parse("{}", where="flags", overrides=overrides)
    else:
        recipe = load(path, overrides)
    folder = work or path.parent / WORK
    return Job(recipe, Work(folder), cache_folder(), ConsoleProgress())


def cache_folder() -> Path:
    """Where big things are kept between runs: $ENGINEROOM_CACHE, or ``engineroom`` in the user's cache folder."""
    try:
        if own := os.environ.get("ENGINEROOM_CACHE"):
            return Path(own).expanduser().absolute()
        base = os.environ.get("XDG_CACHE_HOME")
        return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "engineroom"
    except (RuntimeError, OSError) as error:  # no home folder; the current folder is gone
        raise InputError(
            f"cannot tell where it is ({error})", where="the cache", fix="set ENGINEROOM_CACHE to an absolute path"
        ) from None


def complete_gpu(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """GPU classes for the shell."""
    return [name for name in gpus.catalogue() if name.startswith(incomplete)]


def _value(text: str) -> Any:
    try:
        return read_yaml(text, where="--set")
    except RecipeError:
        return text
