"""A plan for an artifact that is published already, from its build record: for values without a work folder."""

from pathlib import Path
from typing import Any

from engineroom import gpus
from engineroom.checkpoint.shape import ModelShape
from engineroom.errors import IncompatibleError, InputError
from engineroom.gpus import GpuClass
from engineroom.planning.known_models import find_shape
from engineroom.planning.parameters import count_parameters
from engineroom.planning.performance import estimators, with_performance
from engineroom.planning.plan import Plan
from engineroom.planning.replica import plan_replica
from engineroom.recipe import Recipe, parse
from engineroom.repository import record as build_record
from engineroom.repository.record import BuildRecord


def plan_artifact(record: BuildRecord, *, gpu: GpuClass, model: str | None, flags: dict[str, Any], cache: Path) -> Plan:
    """Plan what ``record`` describes on ``gpu``; ``flags`` may hold ``traffic`` and ``slo``.

    An engine does not tell its model's sizes: they are those of ``model`` (a known name, or the path of a config.json),
    else of the checkpoint that the record names. Raises InputError, CheckpointError, DoesNotFitError.
    """
    named = model or str(record.provenance.get("source", "")) or record.name
    shape = _shape(named, given=model is not None)
    recipe = _recipe(record, gpu, named, flags)
    plan = plan_replica(recipe, shape, parameters=count_parameters(shape))
    if (plan.tp, plan.pp) != (record.inputs.tp, record.inputs.pp):  # a class of another kind, such as cpu
        raise IncompatibleError(
            f"tensor {record.inputs.tp} × pipeline {record.inputs.pp} was built and does not run on {gpu.name}",
            where=build_record.FILE,
            fix="name the class that it was built for with --gpu",
        )
    available = estimators(cache)
    planned = with_performance(plan, recipe, available)
    for estimator in available:
        estimator.save()
    return planned


def class_of(record: BuildRecord, name: str | None) -> GpuClass:
    """The class that was asked for; else the one that the engine was built on. Raises InputError."""
    if name is not None:
        return gpus.find(name)
    if record.inputs.runtime == "ctranslate2":
        return gpus.find("cpu")
    product = (record.inputs.gpu or {}).get("product")
    found = next((gpu for gpu in gpus.catalogue().values() if product and gpu.product == product), None)
    if found is None:
        raise InputError("the artifact runs on several GPU classes", where="--gpu", fix="name one, such as --gpu h100")
    return found


def _shape(named: str, *, given: bool) -> ModelShape:
    try:
        return find_shape(named.removeprefix("hf://").partition("@")[0])
    except InputError as error:
        if given:
            raise
        raise InputError(
            f"the build record names {named[:80]!r}, whose sizes are not known here",
            where=build_record.FILE,
            fix="give --model with a known name or the path of its config.json",
        ) from error


def _recipe(record: BuildRecord, gpu: GpuClass, named: str, flags: dict[str, Any]) -> Recipe:
    inputs, model = record.inputs, record.model
    limits: dict[str, int] = {
        "max_input_len": model.max_input_len,
        "max_output_len": model.max_seq_len - model.max_input_len,
        "max_num_tokens": max(8192, model.max_input_len),
    }
    limits |= {key: inputs.limits[key] for key in ("max_batch_size", "max_num_tokens") if key in inputs.limits}
    overrides: dict[str, Any] = {
        "model.source": named,
        "gpu": gpu.name,
        "runtime": inputs.runtime,
        "precision": inputs.precision,
        "limits": limits,
    }
    overrides |= {name: flags[name] for name in ("traffic", "slo") if flags.get(name) is not None}
    if not gpu.is_cpu:
        overrides["parallelism"] = {"tensor": inputs.tp, "pipeline": inputs.pp, "expert": inputs.ep}
        overrides["kv_cache"] = {"dtype": inputs.kv}
    return parse("{}", where="the build record", overrides=overrides)
