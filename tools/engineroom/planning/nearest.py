"""Where a model fits that does not fit where it was asked for: the nearest configurations, for the refusal."""

from collections.abc import Iterator
from dataclasses import replace

from engineroom import gpus
from engineroom.checkpoint.shape import ModelShape
from engineroom.errors import CheckpointError, RecipeError
from engineroom.gpus import GpuClass, Precision
from engineroom.planning.kv_cache import kv_dtype
from engineroom.planning.memory import WEIGHT_BYTES, Load
from engineroom.planning.parallelism import Split, fills_nodes, first_that_fits, legal_splits
from engineroom.recipe import Parallelism, Recipe


def where_it_fits(recipe: Recipe, load: Load) -> list[str]:
    """Up to three configurations that work at the same limits, nearest first.

    More GPUs of the class; a smaller type of weights on it; the other class that needs the fewest GPUs, and of those
    the smallest.
    """
    gpu, precision = recipe.gpu_class, recipe.precision
    found: list[str] = []
    if (split := smallest(recipe, load, gpu, precision)) is not None and not gpu.is_cpu:
        tp, pp = split
        found.append(f"{_count(split)} × {gpu.name} (parallelism.tensor: {tp}, parallelism.pipeline: {pp})")
    lighter = [
        (split[0] * split[1], -WEIGHT_BYTES[other], other)
        for other in _lighter(recipe, load.shape, gpu)
        if (split := smallest(recipe, load, gpu, other)) is not None
    ]
    if lighter:
        count, _, other = min(lighter)
        found.append(f"{count} × {gpu.name} in {other}" if not gpu.is_cpu else f"in {other}")
    if not gpu.is_cpu:
        found += _elsewhere(recipe, load, gpu, precision)
    return found


def smallest(recipe: Recipe, load: Load, gpu: GpuClass, precision: Precision) -> Split | None:
    """The split with the fewest GPUs of ``gpu`` that holds the model in ``precision``; None where none does."""
    asked = recipe.model_copy(
        update={
            "gpu": gpu.name,
            "precision": precision,
            "parallelism": Parallelism(),
            "kv_cache": recipe.kv_cache.model_copy(update={"dtype": "auto"}),
        }
    )
    try:
        kv = kv_dtype(asked, load.shape, gpu)
    except (RecipeError, CheckpointError):
        return None
    other = replace(load, precision=precision, kv_dtype=kv, visible=gpu.visible_bytes)
    splits = (split for split in legal_splits(load.shape, gpu, runtime=load.runtime) if fills_nodes(split, gpu))
    found = first_that_fits(other, splits)
    return found[0] if found else None


def _elsewhere(recipe: Recipe, load: Load, gpu: GpuClass, precision: Precision) -> Iterator[str]:
    best: tuple[int, float, str, Precision] | None = None
    for other in gpus.catalogue().values():
        if other.is_cpu or other.name == gpu.name or recipe.runtime not in other.runtimes:
            continue
        for kind in (precision, *_lighter(recipe, load.shape, other)):
            if kind not in other.precisions:
                continue
            split = smallest(recipe, load, other, kind)
            if split is not None:
                candidate = (_count(split), other.visible_gib, other.name, kind)
                best = candidate if best is None else min(best, candidate, key=lambda each: each[:2])
                break  # the asked type where it fits, else the first lighter one
    if best is not None:
        count, _, name, kind = best
        yield f"{count} × {name} in {kind}"


def _lighter(recipe: Recipe, shape: ModelShape, gpu: GpuClass) -> list[Precision]:
    """Smaller types that the runtime can make of the checkpoint, the largest first."""
    if recipe.runtime == "pytorch" or shape.quantization:  # serves what is stored
        return []
    smaller = [each for each in gpu.precisions if WEIGHT_BYTES[each] < WEIGHT_BYTES[recipe.precision]]
    return sorted(smaller, key=lambda each: -WEIGHT_BYTES[each])


def _count(split: Split) -> int:
    return split[0] * split[1]
