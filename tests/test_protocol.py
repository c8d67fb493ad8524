"""Triton's protocol from our own descriptors is the one that NVIDIA's client speaks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import InferInput, model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor

from engineroom.protocol import calls, messages, packed, texts


def generate(checkout: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(checkout / "ci" / "generate-protocol"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def in_a_fresh_python(checkout: Path, code: str) -> str:
    variables = {**os.environ, "PYTHONPATH": str(checkout / "tools")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_shipped_descriptors_are_those_of_the_installed_tritonclient(checkout: Path, tmp_path: Path) -> None:
    done = generate(checkout, "--check")
    assert done.returncode == 0, done.stderr

    for name in ("ci/generate-protocol", "tools/engineroom/protocol.binpb", "tools/engineroom/protocol.LICENSE"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(checkout / name, tmp_path / name)
    shipped = tmp_path / "tools/engineroom/protocol.binpb"
    older = FileDescriptorSet.FromString(shipped.read_bytes())
    older.file[1].service[0].method.pop()
    shipped.write_bytes(older.SerializeToString())

    done = generate(tmp_path, "--check")
    assert done.returncode == 1
    assert done.stderr.startswith("tools/engineroom/protocol.binpb is not what tritonclient ")
    assert done.stderr.strip().endswith("run ci/generate-protocol")
    assert generate(tmp_path).returncode == 0
    assert generate(tmp_path, "--check").returncode == 0


#: Registers the descriptors of another release of tritonclient as importing that would: one field more.
ANOTHER_RELEASE = """
from google.protobuf import descriptor_pb2, descriptor_pool
from pathlib import Path
for file in descriptor_pb2.FileDescriptorSet.FromString(Path("tools/engineroom/protocol.binpb").read_bytes()).file:
    file.message_type[0].field.add(name="newer", number=999, type="TYPE_STRING", label="LABEL_OPTIONAL")
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import tritonclient.grpc, engineroom.protocol",
        "import engineroom.protocol, tritonclient.grpc",
        f"{ANOTHER_RELEASE}\nimport engineroom.protocol",
        f"import engineroom.protocol\n{ANOTHER_RELEASE}",
    ],
    ids=["tritonclient first", "tritonclient second", "another release first", "another release second"],
)
def test_a_process_may_also_import_a_tritonclient(checkout: Path, imports: str) -> None:
    use = "from engineroom.protocol import messages; print(messages.ModelConfig(name='a').name)"

    assert in_a_fresh_python(checkout, f"import os; os.chdir({str(checkout)!r})\n{imports}\n{use}") == "a"


def test_no_module_needs_tritonclient_and_the_protocol_no_numpy(checkout: Path) -> None:
    sources = sorted((checkout / "tools").rglob("*.py"))
    assert sources
    assert not [
        path for path in sources if "import tritonclient" in (text := path.read_text()) or "from tritonclient" in text
    ]

    code = "import sys, grpc.aio, engineroom.protocol; print({'numpy', 'tritonclient'} & sys.modules.keys())"
    assert in_a_fresh_python(checkout, code) == "set()"


class Recorder:
    """In a channel's place: keeps what a stub makes of it."""

    def __init__(self) -> None:
        self.made: dict[str, tuple[str, Any, Any]] = {}

    def __getattr__(self, kind: str) -> Any:
        def method(path: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> object:
            self.made[path] = (kind, request_serializer, response_deserializer)
            return object()

        return method


def test_the_calls_are_those_of_nvidias_stub() -> None:
    ours, theirs = Recorder(), Recorder()
    made = calls(ours)
    service_pb2_grpc.GRPCInferenceServiceStub(theirs)

    assert vars(made).keys() == {path.rpartition("/")[2] for path in theirs.made}
    assert {path: kind for path, (kind, *_) in ours.made.items()} == {
        path: kind for path, (kind, *_) in theirs.made.items()
    }
    _, write, read = ours.made["/inference.GRPCInferenceService/ModelConfig"]
    assert write(messages.ModelConfigRequest(name="m")) == b"\n\x01m"
    assert isinstance(read(b""), messages.ModelConfigResponse)


def test_messages_and_enums_have_the_names_and_values_of_nvidias_modules() -> None:
    for module in (model_config_pb2, service_pb2):
        for name, descriptor in module.DESCRIPTOR.message_types_by_name.items():
            assert getattr(messages, name).DESCRIPTOR.full_name == descriptor.full_name
        for enum in module.DESCRIPTOR.enum_types_by_name.values():
            assert {value.name: getattr(messages, value.name) for value in enum.values} == dict(
                getattr(module, enum.name).items()
            )
    assert messages.ModelInstanceGroup.KIND_CPU == model_config_pb2.ModelInstanceGroup.KIND_CPU


VALUES: dict[str, tuple[st.SearchStrategy[Any], Any]] = {
    "BYTES": (st.text(), np.object_),
    "INT32": (st.integers(-(2**31), 2**31 - 1), np.int32),
    "UINT64": (st.integers(0, 2**64 - 1), np.uint64),
    "FP32": (st.floats(width=32), np.float32),
    "BOOL": (st.booleans(), np.bool_),
}


@pytest.mark.parametrize("datatype", VALUES)
@given(data=st.data())
def test_elements_are_packed_as_nvidias_client_packs_them(datatype: str, data: st.DataObject) -> None:
    element, kind = VALUES[datatype]
    values = data.draw(st.lists(element, min_size=1))
    theirs = InferInput("x", [len(values)], datatype)
    encoded = [value.encode() if isinstance(value, str) else value for value in values]
    theirs.set_data_from_numpy(np.array(encoded, dtype=kind))

    assert packed(datatype, values) == theirs._get_content()


@given(st.lists(st.binary()))
def test_texts_are_read_as_nvidias_client_reads_them(elements: list[bytes]) -> None:
    raw = b"".join(len(element).to_bytes(4, "little") + element for element in elements)

    assert texts(raw) == [bytes(element).decode(errors="replace") for element in deserialize_bytes_tensor(raw)]
    assert texts(raw) == [element.decode(errors="replace") for element in elements]
