"""safetensors headers: what is sound is read, anything else is a CheckpointError, and both quickly."""

import contextlib
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_samples import checkpoint, index, safetensors, sharded, with_header, write
from hostile import VALUES, draws
from hypothesis import given, note, settings
from hypothesis import strategies as st

from engineroom.checkpoint.weights import BITS, parse_header, read_header, read_weights
from engineroom.errors import CheckpointError


def entry(begin: int, end: int, *, shape: Any = None, dtype: Any = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def parse(header: Any, data: int = 0) -> list[Any]:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return parse_header(raw, data_start=8 + len(raw), total=8 + len(raw) + data, name="f", where="f")


def test_a_sound_header_is_read_in_order_of_offset() -> None:
    header = {"__metadata__": {"format": "pt"}, "b": entry(4, 10), "a": entry(0, 4, shape=[2], dtype="BF16")}
    tensors = parse(header, 10)
    assert [(tensor.name, tensor.size, tensor.shape) for tensor in tensors] == [("a", 4, [2]), ("b", 6, [6])]
    assert parse({"scalar": entry(0, 4, shape=[], dtype="F32"), "empty": entry(4, 4, shape=[0, 3])}, 4)


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"a": entry(0, 4), "b": entry(3, 7)}, 7, "the tensor b overlaps the one before it"),
        ({"a": entry(0, 4), "b": entry(5, 7)}, 7, "the tensor b leaves a gap before it"),
        ({"a": entry(1, 4)}, 4, "leaves a gap before it"),
        ({"a": entry(0, 4)}, 5, "its tensors end at byte"),
        ({"a": entry(0, 4)}, 3, "its tensors end at byte"),
        ({"a": entry(0, 4, shape=[5])}, 4, "4 bytes, but its shape and type need 5"),
        ({"a": entry(4, 0, shape=[0])}, 4, "-4 bytes"),
        ({"a": entry(0, 4, shape=[-4])}, 4, "an impossible shape"),
        ({"a": entry(0, 4, shape=[True, 4])}, 4, "an impossible shape"),
        ({"a": entry(0, 4, shape=[4.0])}, 4, "an impossible shape"),
        ({"a": entry(0, 4, shape="4")}, 4, "an impossible shape"),
        ({"a": entry(0, 4, shape=[1] * 17)}, 4, "an impossible shape"),
        ({"a": entry(0, 4, shape=[1 << 61] * 16)}, 4, "its shape and type need"),
        ({"a": entry(0, 4, shape=[1 << 70])}, 4, "an impossible shape"),
        ({"a": entry(0, 4, dtype="F128")}, 4, "the unknown type F128"),
        ({"a": entry(0, 4, dtype=["U8"])}, 4, "the unknown type"),
        ({"a": {**entry(0, 4), "data_offsets": [0]}}, 4, "impossible offsets"),
        ({"a": {**entry(0, 4), "data_offsets": {"0": 0}}}, 4, "impossible offsets"),
        ({"a": {**entry(0, 4), "data_offsets": [0, "4"]}}, 4, "impossible offsets"),
        ({"a": 3}, 0, "no description"),
        ({"a": {}}, 0, "the unknown type None"),
        ([], 0, "no JSON object"),
        (b'{"a": 1, "a": 2}', 0, "a name stands there twice"),
        (b'{"a": ' + b"[" * 100_000, 0, "not valid JSON"),
        (b'{"a": ' * 100_000, 0, "not valid JSON"),
        (b'{"a": 1' + b"0" * 5000 + b"}", 0, "not valid JSON"),
        (b'{"\xff": 1}', 0, "not valid JSON"),
        (b"", 0, "not valid JSON"),
    ],
)
def test_a_hostile_header_is_one_sentence(header: Any, data: int, said: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        parse(header, data)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("length", [1, 90, 1 << 31, (1 << 64) - 1])
def test_a_header_longer_than_its_file_is_refused_without_reading_it(length: int, tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" if length != 1 else struct.pack("<Q", length))
    with pytest.raises(CheckpointError, match="its header claims"):
        read_header(path, "f.safetensors")
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    assert read_header(path, "f.safetensors") == []


def test_a_header_above_the_limit_of_the_format_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    with path.open("wb") as file:  # a sparse file: it has the bytes that its header claims
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(1 << 30)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="its header claims 100000001 bytes"):
        read_header(path, "f.safetensors")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"model.safetensors.index.json": index(a="../model.safetensors")}, "no name of a safetensors file"),
        ({"model.safetensors.index.json": index(a="/etc/model.safetensors")}, "no name of a safetensors file"),
        ({"model.safetensors.index.json": index(a="sub/model.safetensors")}, "no name of a safetensors file"),
        ({"model.safetensors.index.json": index(a="model.bin")}, "no name of a safetensors file"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": 3}}'}, "no name of a safetensors file"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": ["b"]}}'}, "no name of a safetensors file"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": {"b": 1}}}'}, "no name of a safetensors file"),
        ({"model.safetensors.index.json": index(a="missing.safetensors")}, "which it names, is missing"),
        ({"model.safetensors.index.json": b'{"weight_map": []}'}, "weight_map is missing"),
        ({"model.safetensors.index.json": b"[]"}, "should hold a JSON object"),
        ({"model.safetensors.index.json": b"\x80"}, "not valid JSON"),
        (
            {
                "model.safetensors.index.json": index(w="model.safetensors", v="b.safetensors"),
                "b.safetensors": safetensors({"w": 4}),
            },
            "also stands in",
        ),
    ],
)
def test_a_hostile_index_is_one_sentence(files: dict[str, bytes], said: str, tmp_path: Path) -> None:
    folder = write(tmp_path, checkpoint() | files)
    with pytest.raises(CheckpointError) as refused:
        read_weights(folder)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_all_parts_of_an_index_are_read(tmp_path: Path) -> None:
    weights = read_weights(write(tmp_path, sharded(100, parts=3)))
    assert (sorted(weights.names()), weights.size, weights.parameters) == (["w0", "w1", "w2"], 300, 300)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_values_are_read_as_float32(dtype: str, tmp_path: Path) -> None:
    import ml_dtypes

    values = np.array([[1.5, -2.0], [0.25, 3.0]], dtype=np.float32)
    stored = values.astype({"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[dtype])
    size = stored.nbytes
    header = {"first": entry(0, 4), "w": entry(4, 4 + size, shape=[2, 2], dtype=dtype)}
    folder = write(tmp_path, {"model.safetensors": with_header(header, b"\0" * 4 + stored.tobytes())})
    weights = read_weights(folder)

    assert np.array_equal(weights.read("w", (2, 2)), values)
    assert weights.read("w", (2, 2)).dtype == np.float32
    with pytest.raises(CheckpointError, match=r"its shape is \[2, 2\], but config.json says \[4\]"):
        weights.read("w", (4,))
    with pytest.raises(CheckpointError, match="the tensor v is missing"):
        weights.read("v", (2, 2))
    with pytest.raises(CheckpointError, match="values of type U8 cannot be converted"):
        weights.read("first", (4,))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="the file ends inside the tensor"):
        weights.read("w", (2, 2))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot read it"):
        weights.read("w", (2, 2))


@settings(max_examples=200, deadline=None)
@given(st.integers())
def test_any_header_is_read_or_refused(seed: int) -> None:
    for draw in draws(seed):  # 4,000 headers
        header: dict[str, Any] = {}
        for name in draw.sample(["a", "b", "\n", "__metadata__", "c" * 10_000], draw.randint(0, 4)):
            described = {
                "dtype": draw.choice(["U8", "BF16", draw.choice(VALUES)]),
                "shape": draw.choice([[4], [2], draw.choice(VALUES)]),
                "data_offsets": draw.choice([[0, 4], [4, 8], draw.choice(VALUES)]),
            }
            for key in draw.sample(sorted(described), draw.choice([0, 0, 0, 1])):
                del described[key]
            header[name] = draw.choice([described, described, described, draw.choice(VALUES)])
        note(repr(header))
        with contextlib.suppress(CheckpointError):
            data = draw.choice([0, 4, 8])
            assert sum(tensor.size for tensor in parse(header, data)) == data


@settings(max_examples=200, deadline=None)
@given(st.integers())
def test_any_damage_to_a_header_is_read_or_refused(seed: int) -> None:
    sound = json.dumps({"a": entry(0, 4), "b": entry(4, 8, shape=[2], dtype="BF16")}).encode()
    for draw in draws(seed):  # 4,000 headers
        raw = bytearray(sound)
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(raw))
            raw[place : place + draw.randint(0, 3)] = draw.choice(
                [b"", draw.randbytes(2), b"9" * 30, b"[", b'"', b"\\u"]
            )
        note(repr(bytes(raw)))
        with contextlib.suppress(CheckpointError):
            assert sum(tensor.size for tensor in parse(bytes(raw), 8)) == 8


@settings(max_examples=100, deadline=500)
@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_are_read_or_refused(raw: bytes, data: int) -> None:
    with contextlib.suppress(CheckpointError):
        parse(raw, data)


@settings(max_examples=100, deadline=500)
@given(st.lists(st.tuples(st.sampled_from([*BITS]), st.lists(st.integers(0, 5), max_size=3)), max_size=6), st.randoms())
def test_any_sound_header_is_read(tensors: list[tuple[str, list[int]]], random: Any) -> None:
    header, position = {}, 0
    for number, (dtype, shape) in enumerate(tensors):
        end = position + int(np.prod(shape)) * BITS[dtype] // 8
        header[f"t{number}"] = entry(position, end, shape=shape, dtype=dtype)
        position = end
    items = list(header.items())
    random.shuffle(items)
    assert sorted(tensor.name for tensor in parse(dict(items), position)) == sorted(header)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers())
def test_any_index_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = write(tmp_path_factory.getbasetemp() / "hostile-index", checkpoint(16))
    for draw in draws(seed):  # 1,000 indexes
        names = ["model.safetensors", "../x.safetensors", draw.choice(VALUES)]
        mapping = draw.choice(
            [{"w": draw.choice(names), "v": draw.choice(names)}, {"w": names[0]}, draw.choice(VALUES)]
        )
        note(repr(mapping))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapping}))
        with contextlib.suppress(CheckpointError):
            assert {tensor.file for tensor in read_weights(folder).tensors.values()} == {"model.safetensors"}
