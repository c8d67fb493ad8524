"""safetensors files: headers checked before anything trusts them, tensors read one at a time.

The format (huggingface/safetensors, README): 8 bytes little-endian header length, JSON header, data.
Checked here: header length, every dtype, shape and offset, no overlap, no gap, nothing outside the file.
"""

import json
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from engineroom.checkpoint.files import INDEX, choose_weights
from engineroom.checkpoint.shape import read_json
from engineroom.documents import Strict
from engineroom.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The reference implementation refuses longer headers (MAX_HEADER_SIZE in safetensors/src/tensor.rs).
LONGEST_HEADER = 100_000_000
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8,
}  # fmt: skip


#: Tensors that some checkpoints carry and that are no weights: causal masks (GPT-2), rotary frequencies, and the
#: scales of FP8 blocks.
_BUFFERS = re.compile(r"(^|\.)h\.\d+\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$|\.weight_scale(_inv)?$")

_LAYER = re.compile(r"(?:model|transformer)?\.?(?:layers|h)\.(\d{1,9})\.")


class TensorInfo(Strict):
    """Where one tensor lies."""

    name: str
    file: str
    """Path of the safetensors file inside the checkpoint."""
    dtype: str
    shape: list[int]
    start: int = Field(ge=0)
    """Byte offset inside the file."""
    size: int = Field(ge=0)
    """Bytes."""

    @property
    def parameters(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class Weights:
    """All tensors of a checkpoint folder, by name."""

    def __init__(self, folder: Path, tensors: dict[str, TensorInfo]) -> None:
        self._folder = folder
        self.tensors = tensors

    @property
    def parameters(self) -> int:
        """Number of values over all tensors that are weights."""
        return sum(tensor.parameters for name, tensor in self.tensors.items() if not _BUFFERS.search(name))

    def parameters_of(self, layers: int) -> int:
        """The same without layers from number ``layers`` on, such as the draft layers of DeepSeek-V3."""
        found = ((_LAYER.match(name), tensor) for name, tensor in self.tensors.items() if not _BUFFERS.search(name))
        return sum(tensor.parameters for layer, tensor in found if layer is None or int(layer[1]) < layers)

    @property
    def size(self) -> int:
        """Bytes over all tensors."""
        return sum(tensor.size for tensor in self.tensors.values())

    def names(self) -> Iterator[str]:
        """Names of all tensors."""
        return iter(self.tensors)

    def read(self, name: str, shape: tuple[int, ...]) -> "NDArray[np.float32]":
        """Tensor ``name`` as float32; ``shape`` is what the config promises. Raises CheckpointError."""
        import numpy as np

        info = self.tensors.get(name)
        if info is None:
            raise CheckpointError(f"the tensor {name} is missing", where=str(self._folder))
        where = f"{self._folder / info.file}: {name}"
        if tuple(info.shape) != shape:
            raise CheckpointError(f"its shape is {info.shape}, but config.json says {list(shape)}", where=where)
        types: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
        if info.dtype not in types:
            raise CheckpointError(f"values of type {info.dtype} cannot be converted", where=where)
        try:
            with (self._folder / info.file).open("rb") as file:
                file.seek(info.start)
                raw = np.fromfile(file, dtype=types[info.dtype], count=info.parameters)
        except OSError as error:
            raise CheckpointError(f"cannot read it ({error.strerror or error})", where=where) from None
        if raw.size != info.parameters:
            raise CheckpointError("the file ends inside the tensor", where=where)
        if info.dtype == "BF16":  # numpy has no bfloat16: it is the upper half of a float32
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        values: NDArray[np.float32] = raw.astype(np.float32, copy=False).reshape(shape)
        return values


def read_weights(folder: Path) -> Weights:
    """Read and check the headers of all safetensors files that belong to the checkpoint in ``folder``.

    Raises CheckpointError.
    """
    index = folder / INDEX
    if index.exists():
        mapping = read_json(index).get("weight_map")
        if not isinstance(mapping, dict) or not mapping:
            raise CheckpointError("weight_map is missing or no mapping", where=str(index))
        files = sorted({_inside(folder, name, index) for name in mapping.values()})
    else:
        # Not simply all of them: a clone of a repository also holds consolidated.safetensors or adapters.
        files = choose_weights(_names(folder), None, where=str(folder))
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for tensor in read_header(folder / file, file):
            if tensor.name in tensors:
                raise CheckpointError(
                    f"the tensor {tensor.name} also stands in {tensors[tensor.name].file}", where=str(folder / file)
                )
            tensors[tensor.name] = tensor
    return Weights(folder, tensors)


def read_header(path: Path, name: str) -> list[TensorInfo]:
    """The tensors of one file, sorted by offset; ``name`` goes into each entry. Raises CheckpointError."""
    where = str(path)
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if len(start) < 8:
                raise CheckpointError("too short for a safetensors file", where=where)
            (length,) = struct.unpack("<Q", start)
            if length > min(LONGEST_HEADER, total - 8):
                raise CheckpointError(f"its header claims {length} bytes, which it cannot have", where=where)
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read it ({error.strerror or error})", where=where) from None
    return parse_header(raw, data_start=8 + length, total=total, name=name, where=where)


def parse_header(raw: bytes, *, data_start: int, total: int, name: str, where: str) -> list[TensorInfo]:
    """Check the JSON header of a safetensors file of ``total`` bytes. Raises CheckpointError."""
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its header is not valid JSON ({str(error)[:100]})", where=where) from None
    if not isinstance(header, dict):
        raise CheckpointError("its header is no JSON object", where=where)
    header.pop("__metadata__", None)
    tensors = [_tensor(key, entry, data_start, name, where) for key, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.size))
    expected = data_start
    for tensor in tensors:
        if tensor.start != expected:
            found = "overlaps the one before it" if tensor.start < expected else "leaves a gap before it"
            raise CheckpointError(f"the tensor {tensor.name[:80]} {found}", where=where)
        expected += tensor.size
    if expected != total:
        raise CheckpointError(f"its tensors end at byte {expected}, but the file has {total}", where=where)
    return tensors


def _tensor(key: str, entry: Any, data_start: int, name: str, where: str) -> TensorInfo:
    def wrong(found: str) -> CheckpointError:
        return CheckpointError(f"the tensor {key[:80]} has {found}", where=where)

    if not isinstance(entry, dict):
        raise wrong("no description")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise wrong(f"the unknown type {str(dtype)[:20]}")
    if not isinstance(shape, list) or len(shape) > 16 or not all(_size(dim) for dim in shape):
        raise wrong("an impossible shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_size(offset) for offset in offsets):
        raise wrong("impossible offsets")
    begin, end = offsets
    if end - begin != math.prod(shape) * BITS[dtype] // 8:
        raise wrong(f"{end - begin} bytes, but its shape and type need {math.prod(shape) * BITS[dtype] // 8}")
    return TensorInfo(name=key, file=name, dtype=dtype, shape=shape, start=data_start + begin, size=end - begin)


def _size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name stands there twice")
    return result


def _names(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except OSError as error:
        raise CheckpointError(f"cannot read it ({error.strerror or error})", where=str(folder)) from None


def _inside(folder: Path, name: Any, where: Path) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors", name):
        raise CheckpointError(f"{str(name)[:80]!r} is no name of a safetensors file", where=f"{where}: weight_map")
    if not (folder / name).is_file():
        raise CheckpointError(f"the file {name}, which it names, is missing", where=str(where), fix="fetch it again")
    return name
