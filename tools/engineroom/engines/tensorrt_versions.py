"""Which image holds which TensorRT-LLM, TensorRT, CUDA and driver. An engine loads where all of them agree.

Source: triton-inference-server/server, docs/introduction/compatibility.md:39-69 (its table for
``-trtllm-python-py3`` images). Listed are the images of the engine era that our flag table describes: 1.2.1 is the
last stable release of TensorRT-LLM with engines (removed in 1.3.0rc22, pull request 15918).
"""

from dataclasses import dataclass

from engineroom.errors import InputError


@dataclass(frozen=True)
class Stack:
    """One image and what is in it."""

    image: str
    trtllm: str
    tensorrt: str
    """To the build number: 9.2.0.4 and 9.2.0.5 refused each other's engines (tensorrtllm_backend issue 194)."""
    cuda: str
    driver: str
    """The driver that belongs to this CUDA; which older branches work through compatibility packages is unverified."""
    modelopt: str
    """What the wheel of this TensorRT-LLM asks for (its metadata on PyPI)."""


def _stack(month: str) -> Stack:
    return Stack(
        image=f"nvcr.io/nvidia/tritonserver:{month}-trtllm-python-py3",
        trtllm="1.2.1",
        tensorrt="10.14.1.48",
        cuda="13.1.0.036",
        driver="590.44.01",
        modelopt="~=0.37.0",
    )


#: Newest first. They hold the same TensorRT-LLM and TensorRT, and so load each other's engines.
STACKS = (_stack("26.07"), _stack("26.06"), _stack("26.05"), _stack("26.04"))

#: In which engines are built and served.
PINNED = STACKS[0]


def find(image: str) -> Stack:
    """The stack in ``image``. Raises InputError for an image whose flags we do not know."""
    for stack in STACKS:
        if stack.image == image:
            return stack
    raise InputError(
        f"unknown image {image[:120]!r}",
        where="image",
        fix=f"use one with TensorRT-LLM {PINNED.trtllm}: {', '.join(stack.image for stack in STACKS)}",
    )
