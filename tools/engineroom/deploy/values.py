"""Values for the chart ``engineroom``: what follows from a built model, each with its reason.

Nothing is guessed here: a value comes from the build record, the plan or the GPU class, and the comment above it
in the file says from which. What none of them knows stays the chart's default.
"""

import re

from engineroom.artifacts.reference import Reference
from engineroom.deploy import gpu_values
from engineroom.deploy.settings import Setting, Values, quantity
from engineroom.errors import BadReferenceError, DocumentError, IncompatibleError
from engineroom.gpus import GpuClass
from engineroom.planning.plan import Plan
from engineroom.repository import record as build_record
from engineroom.repository.record import BuildRecord

#: Disk beyond the files of the artifact: a tenth of it, and one chunk, for what a download keeps beside them.
STORAGE_FACTOR = 1.1
STORAGE_EXTRA = 64 << 20

#: Name of the Secret that values for several nodes expect.
MPI_SECRET = "engineroom-mpi"  # noqa: S105  (a name)

#: The chart's minimum, seconds: a gateway that is stopped needs them to end its streams with a word.
LEAST_DRAIN = 3

_IMAGE = re.compile(
    r"(?:(?P<registry>localhost|[\w-]+(?:\.[\w-]+)+(?::\d+)?|[\w-]+:\d+)/)?(?P<repository>[a-z0-9][a-z0-9._/-]*)"
    r"(?::(?P<tag>[\w][\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


def make_values(record: BuildRecord, plan: Plan, gpu: GpuClass, *, reference: str) -> Values:
    """The values that serve the artifact ``reference`` on GPUs of the class ``gpu``.

    Raises:
        BadReferenceError: where ``reference`` is not pinned by a digest (or by a ``recipe-…`` tag).
        IncompatibleError: where the plan, the build record and the class do not belong together.
    """
    pinned = _check_reference(reference)
    _check_same_model(record, plan, gpu)
    settings = [
        Setting("artifact.ref", str(pinned), "the published artifact; a digest cannot come to name another one"),
        Setting("artifact.storage", _storage(record), "build record: all files, a tenth more and 64 MiB"),
        Setting("model.runtime", record.inputs.runtime, "build record"),
        Setting(
            "model.worldSize",
            record.requires.world_size,
            f"build record: tensor {record.inputs.tp} x pipeline {record.inputs.pp} parallelism",
        ),
        Setting("model.clientModel", record.model.client_model, "build record: the Triton model that clients call"),
        *gpu_values.node_settings(gpu),
        *_server_image(record),
        *_workload(record, gpu),
        Setting("triton.replicas", plan.replicas, "plan"),
        *_resources(record, plan),
        Setting("triton.loadSeconds", max(10, plan.pod.load_seconds), "plan: the load, at worst"),
        _drain(plan, gpu),
    ]
    return Values(
        title=f"{record.name} on {gpu.name}, runtime {record.inputs.runtime}, engine key {record.key[:12]}. "
        "Written by `engineroom values`: generate it again rather than change it.",
        settings=tuple(settings),
    )


def _check_reference(text: str) -> Reference:
    reference = Reference.parse(text)
    if reference.digest is None and not (reference.tag or "").startswith("recipe-"):
        raise BadReferenceError(
            "it has no digest, and a tag may come to name another model",
            where=text,
            fix="append the @sha256:… that `engineroom publish` printed and `engineroom list` shows",
        )
    return reference


def _check_same_model(record: BuildRecord, plan: Plan, gpu: GpuClass) -> None:
    pairs = [
        ("GPU class", plan.gpu, gpu.name),
        ("runtime", plan.runtime, record.inputs.runtime),
        ("precision", plan.precision, record.inputs.precision),
        ("world size", plan.world_size, record.requires.world_size),
    ]
    if record.requires.sm is not None:
        pairs.append(("compute capability", gpu.sm or "none", record.requires.sm))
    for name, planned, built in pairs:
        if planned != built:
            raise IncompatibleError(
                f"{name} {built} was built and {planned} was planned",
                where=build_record.FILE,
                fix="run `engineroom plan`, `build` and `assemble` for the same recipe",
            )


def _storage(record: BuildRecord) -> str:
    return quantity(int(sum(file.size for file in record.files) * STORAGE_FACTOR) + STORAGE_EXTRA)


def _server_image(record: BuildRecord) -> list[Setting]:
    if record.inputs.image is None:
        return gpu_values.cpu_image_settings() if record.inputs.runtime == "ctranslate2" else []
    parts = _IMAGE.fullmatch(record.inputs.image)
    if parts is None:
        raise DocumentError(
            f"{record.inputs.image[:120]!r} is no image", where=f"{build_record.FILE}: inputs.image", fix="build again"
        )
    why = "build record: an engine loads only in the release that built it"
    found = {name: value or "" for name, value in parts.groupdict().items()}
    return [Setting(f"images.server.{name}", value, why) for name, value in found.items()]


def _workload(record: BuildRecord, gpu: GpuClass) -> list[Setting]:
    """A group of pods, where one node has too few GPUs for the ranks of an engine."""
    if record.inputs.runtime != "tensorrt" or record.requires.world_size <= gpu.gpus_per_node:
        return []
    why = f"{record.requires.world_size} ranks over nodes of {gpu.gpus_per_node} GPUs: experimental"
    make = f"make it: engineroom mpi-secret {MPI_SECRET} | kubectl apply -f -"
    return [
        Setting("triton.workload.kind", "LeaderWorkerSet", why),
        Setting("triton.mpi.secret", MPI_SECRET, make),
    ]


def _resources(record: BuildRecord, plan: Plan) -> list[Setting]:
    shm = max(plan.pod.shm_bytes, record.requires.shm_bytes)
    return [
        Setting("triton.cpu", str(plan.pod.cpu), "plan"),
        # The plan's memory holds the plan's /dev/shm: its pages count against the limit of the container that
        # writes them.
        Setting(
            "triton.memory",
            quantity(plan.pod.memory_bytes + shm - plan.pod.shm_bytes),
            "plan: the server and its /dev/shm",
        ),
        Setting("triton.sharedMemory", quantity(max(shm, 64 << 20)), "the larger of build record and plan"),
    ]


def _drain(plan: Plan, gpu: GpuClass) -> Setting:
    if plan.pod.drain_seconds is not None:
        return Setting(
            "triton.drainSeconds", max(LEAST_DRAIN, plan.pod.drain_seconds), "plan: the longest answer, at worst"
        )
    return Setting(
        "triton.drainSeconds",
        gpu_values.default_drain_seconds(gpu),
        f"default of the class {gpu.name}: the plan has no estimate for this case. Measure the longest answer",
    )
