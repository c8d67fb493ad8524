"""Triton's gRPC protocol: its messages and its calls, made from descriptors that are shipped with this module.

``protocol.binpb`` is a serialized ``google.protobuf.FileDescriptorSet`` of Triton's ``model_config.proto`` and
``grpc_service.proto``, which ci/generate-protocol takes from NVIDIA's package tritonclient (BSD-3-Clause:
``protocol.LICENSE``). That package is not needed here, nor the numpy that comes with it: docs/decisions/0011.

It loads protobuf, so import it in the function that needs it.
"""

import struct
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

SERVICE = "inference.GRPCInferenceService"

#: Elements of fixed size, as the binary form of KServe's protocol has them: little-endian.
_FORMATS = {"INT32": "<i", "UINT64": "<Q", "FP32": "<f", "BOOL": "<?"}

_FILES = FileDescriptorSet.FromString(Path(__file__).with_name("protocol.binpb").read_bytes()).file

#: A pool of its own. In the common one protobuf refuses a second, different file of the same name: a process that also
#: imports a tritonclient of another release could import only one of the two.
_POOL = DescriptorPool()
for _file in _FILES:
    _POOL.AddSerializedFile(_file.SerializeToString())


def _messages() -> Any:
    found = SimpleNamespace()
    for file in (_POOL.FindFileByName(file.name) for file in _FILES):
        for name, descriptor in file.message_types_by_name.items():
            setattr(found, name, GetMessageClass(descriptor))
        for enum in file.enum_types_by_name.values():
            for value in enum.values:
                setattr(found, value.name, value.number)
    return found


messages: Any = _messages()
"""Class of every message, and number of every value of an enum, as attributes: what a generated module holds."""


def calls(channel: Any) -> Any:
    """Every call of Triton's service on ``channel``, a ``grpc.Channel`` or a ``grpc.aio.Channel``, as attributes.

    Such as ``calls(channel).ModelReady(messages.ModelReadyRequest(name="m"), timeout=5)``.
    """
    found = SimpleNamespace()
    for method in _POOL.FindServiceByName(SERVICE).methods:
        # Streams in one direction, the other two kinds, it has none of.
        kind = channel.stream_stream if method.client_streaming else channel.unary_unary
        call = kind(
            f"/{SERVICE}/{method.name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        setattr(found, method.name, call)
    return found


def packed(datatype: str, values: Iterable[Any]) -> bytes:
    """The elements of a tensor, as ``raw_input_contents`` has them. Text becomes UTF-8, its length before it.

    ``datatype`` is BYTES (of text), INT32, UINT64, FP32 or BOOL. Raises struct.error for a number that does not fit.
    """
    if datatype == "BYTES":
        encoded = [value.encode() for value in values]
        return b"".join(struct.pack("<I", len(element)) + element for element in encoded)
    return b"".join(struct.pack(_FORMATS[datatype], value) for value in values)


def texts(raw: bytes) -> list[str]:
    """The elements of a BYTES tensor, from ``raw_output_contents``. What is not UTF-8 becomes U+FFFD."""
    found, at = [], 0
    while at < len(raw):
        start = at + 4
        at = start + int.from_bytes(raw[at:start], "little")
        found.append(raw[start:at].decode(errors="replace"))
    return found
