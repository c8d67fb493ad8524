"""``values/gpu/<class>.yaml``: the facts of one GPU class, for a model that fits one of its GPUs.

Only what ``gpus.yaml`` says goes in, and defaults of the class for disk, memory and grace, which are on the safe side
of every model that fits. What depends on the model comes from :mod:`engineroom.deploy.values`.
"""

import math

from engineroom.deploy.settings import Setting, Values
from engineroom.gpus import GpuClass

#: The image of the class cpu, under the name that a local build gives it (engine-builder/Dockerfile). Its
#: tag is left empty: the chart then takes its own version.
CPU_IMAGE = {"registry": "localhost", "repository": "engineroom/triton-cpu", "tag": "", "digest": ""}


def class_values(gpu: GpuClass) -> Values:
    """What serves any model of world size 1 on this class, given ``--set artifact.ref=…@sha256:…``."""
    first = gpu.runtimes[0]
    settings = [
        Setting("artifact.storage", f"{_storage_gib(gpu)}Gi", _storage_reason(gpu)),
        Setting("model.runtime", first, _runtime_reason(gpu)),
        *node_settings(gpu),
        *(cpu_image_settings() if gpu.is_cpu else []),
        *_resources(gpu),
        Setting("triton.drainSeconds", default_drain_seconds(gpu), "default of the class: measure the longest answer"),
    ]
    return Values(
        title=f"{gpu.product or 'No GPU'}: facts of the class {gpu.name}, for models of world size 1; for others use "
        "`engineroom values`. Written by ci/generate-gpu-values from tools/engineroom/gpus.yaml.",
        settings=tuple(settings),
    )


def node_settings(gpu: GpuClass) -> list[Setting]:
    """Which nodes may run the pods."""
    if gpu.is_cpu:
        return [Setting("gpu.perNode", 0, "the class cpu")]
    settings = [
        Setting("gpu.perNode", gpu.gpus_per_node, f"class {gpu.name}: the largest node"),
        Setting("gpu.products", list(gpu.gfd_product), "node label nvidia.com/gpu.product, from GPU feature discovery"),
    ]
    if gpu.mig_profile:
        why = (
            "the device plugin's name of the MIG profile with its strategy `mixed`; with `single` it is nvidia.com/gpu"
        )
        settings.insert(0, Setting("gpu.resource", gpu.resource, why))
    return settings


def cpu_image_settings() -> list[Setting]:
    """Triton with CTranslate2, which no public registry has."""
    why = "Triton with CTranslate2: the target triton-cpu of engine-builder/Dockerfile"
    return [Setting(f"images.server.{name}", value, why) for name, value in CPU_IMAGE.items()]


def default_drain_seconds(gpu: GpuClass) -> int:
    """Seconds for running answers where no plan knows better: 1,024 tokens at 10 a second, or 3.5 without a GPU."""
    return 300 if gpu.is_cpu else 120


def _storage_gib(gpu: GpuClass) -> int:
    return 8 if gpu.is_cpu else math.ceil(gpu.visible_gib * 1.1)


def _storage_reason(gpu: GpuClass) -> str:
    if gpu.is_cpu:
        return "default of the class: a model of 7 billion parameters in int8"
    return f"a model of one GPU is no larger than its {gpu.visible_gib:g} GiB; a tenth more"


def _runtime_reason(gpu: GpuClass) -> str:
    others = ", ".join(gpu.runtimes[1:])
    return "the runtime of the artifact" + (f"; also possible: {others}" if others else "")


def _resources(gpu: GpuClass) -> list[Setting]:
    if gpu.is_cpu:
        why = "defaults of the class, for small models"
        return [Setting("triton.cpu", "2", why), Setting("triton.memory", "10Gi", why)]
    return [
        Setting(
            "triton.memory",
            f"{math.ceil(gpu.visible_gib) + 4}Gi",
            "a model of one GPU may pass through host memory whole while it loads; 4 GiB for the server",
        )
    ]
