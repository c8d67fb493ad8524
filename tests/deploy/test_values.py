"""Values follow from the build record and the plan, and each says from which."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engineroom import gpus
from engineroom.deploy.helm import Helm, chart_folder
from engineroom.deploy.settings import Setting, Values, quantity
from engineroom.deploy.values import make_values
from engineroom.engines.engine import Requires
from engineroom.errors import BadReferenceError, DocumentError, IncompatibleError
from engineroom.planning.plan import Plan
from engineroom.repository.record import BuildRecord, ServedModel

GIB, MIB = 1 << 30, 1 << 20
REFERENCE = "s3://models/llama:v1@sha256:" + "a" * 64
H100 = gpus.find("h100")

MakeRecord = Callable[..., BuildRecord]
MakePlan = Callable[..., Plan]


def helm4() -> Helm:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    place = Path(os.environ.get("ENGINEROOM_CACHE") or Path(cache) / "engineroom") / "tools" / "bin" / "helm4"
    found = shutil.which("helm4") or (place if place.is_file() else None)
    if found is None and os.environ.get("CI"):
        pytest.fail("no helm4 on this machine: run ci/install-helm")
    if found is None:
        pytest.skip("no helm4 on this machine: run ci/install-helm")
    return Helm(Path(found))


def test_every_value_comes_from_the_record_the_plan_or_the_class(make_record: MakeRecord, make_plan: MakePlan) -> None:
    record, plan = make_record(sizes=(10 * GIB, 10 * GIB)), make_plan(drain_seconds=77, replicas=3)

    values = make_values(record, plan, H100, reference=REFERENCE).as_dict()

    assert values == {
        "artifact": {"ref": REFERENCE, "storage": f"{22 * 1024 + 64}Mi"},
        "model": {"runtime": "tensorrt", "worldSize": 4, "clientModel": "tensorrt_llm_bls"},
        "gpu": {"perNode": 8, "products": ["NVIDIA-H100-80GB-HBM3"]},
        "images": {
            "server": {
                "registry": "nvcr.io",
                "repository": "nvidia/tritonserver",
                "tag": "26.07-trtllm-python-py3",
                "digest": "",
            }
        },
        "triton": {
            "replicas": 3,
            "cpu": "20",
            "memory": "100Gi",
            "sharedMemory": "2Gi",
            "loadSeconds": 240,
            "drainSeconds": 77,
        },
    }


def test_the_chart_renders_them(make_record: MakeRecord, make_plan: MakePlan, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(make_values(make_record(), make_plan(), H100, reference=REFERENCE).to_yaml(), encoding="utf-8")

    manifests = helm4().template(chart_folder(), [path], release="llm", namespace="models")

    [deployment] = [item for item in yaml.safe_load_all(manifests) if item and item["kind"] == "Deployment"]
    server = deployment["spec"]["template"]["spec"]["containers"][0]
    assert server["command"] == ["mpirun"]
    assert server["resources"]["limits"] == {"memory": "100Gi", "nvidia.com/gpu": 4}


def test_an_engine_over_several_nodes_runs_as_a_group_whose_keys_the_comment_says_how_to_make(
    make_record: MakeRecord, make_plan: MakePlan, tmp_path: Path
) -> None:
    values = make_values(make_record(inputs={"tp": 8, "pp": 2}), make_plan(tp=8, pp=2), H100, reference=REFERENCE)
    path = tmp_path / "values.yaml"
    path.write_text(values.to_yaml(), encoding="utf-8")

    manifests = helm4().template(chart_folder(), [path], release="llm")

    [group] = [item for item in yaml.safe_load_all(manifests) if item and item["kind"] == "LeaderWorkerSet"]
    assert group["spec"]["leaderWorkerTemplate"]["size"] == 2
    assert "engineroom mpi-secret engineroom-mpi | kubectl apply -f -" in values.to_yaml()
    assert "workload" not in make_values(make_record(), make_plan(), H100, reference=REFERENCE).as_dict()["triton"]


def test_values_of_a_model_on_the_processor_render_too(
    make_record: MakeRecord, make_plan: MakePlan, tmp_path: Path
) -> None:
    cpu: dict[str, Any] = {"runtime": "ctranslate2", "image": None, "precision": "int8", "tp": 1}
    served = ServedModel(client_model="tensorrt_llm", max_input_len=1024, max_seq_len=2048, eos_ids=[2])
    record = make_record(inputs=cpu, requires=Requires(), model=served, sizes=(200 * MIB, 3))
    plan = make_plan(
        gpu="cpu", runtime="ctranslate2", precision="int8", tp=1, cpu=2, memory_bytes=GIB, shm_bytes=GIB // 4
    )
    values = make_values(record, plan, gpus.find("cpu"), reference=f"file:///srv/models/smollm2@sha256:{'a' * 64}")
    path = tmp_path / "values.yaml"
    path.write_text(values.to_yaml(), encoding="utf-8")

    manifests = helm4().template(chart_folder(), [path], release="llm")

    [deployment] = [item for item in yaml.safe_load_all(manifests) if item and item["kind"] == "Deployment"]
    server = deployment["spec"]["template"]["spec"]["containers"][0]
    assert server["image"].startswith("localhost/engineroom/triton-cpu:")
    assert server["readinessProbe"]["httpGet"]["path"] == "/v2/models/tensorrt_llm/ready"
    assert values.as_dict()["artifact"]["storage"] == "285Mi"


def test_the_file_holds_the_same_values_and_a_comment_above_each(make_record: MakeRecord, make_plan: MakePlan) -> None:
    values = make_values(make_record(), make_plan(), H100, reference=REFERENCE)
    text = values.to_yaml()

    assert yaml.safe_load(text) == values.as_dict()
    for setting in values.settings:
        assert f"# {setting.why}"[:60] in text


def test_without_an_estimate_the_class_gives_its_default_and_the_comment_says_so(
    make_record: MakeRecord, make_plan: MakePlan
) -> None:
    guessed = make_values(make_record(), make_plan(drain_seconds=None), H100, reference=REFERENCE)
    known = make_values(make_record(), make_plan(drain_seconds=33), H100, reference=REFERENCE)

    assert guessed.as_dict()["triton"]["drainSeconds"] == 120
    assert "default of the class h100: the plan has no estimate" in guessed.to_yaml()
    assert known.as_dict()["triton"]["drainSeconds"] == 33
    assert "default of the class" not in known.to_yaml()


def test_shared_memory_is_what_record_or_plan_wants_more_of_and_counts_as_memory(
    make_record: MakeRecord, make_plan: MakePlan
) -> None:
    record = make_record(requires=Requires(sm="90", world_size=4, shm_bytes=3 * GIB))

    values = make_values(record, make_plan(shm_bytes=2 * GIB), H100, reference=REFERENCE).as_dict()

    assert values["triton"]["sharedMemory"] == "3Gi"
    assert values["triton"]["memory"] == "101Gi"


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("mirror:5000/a/b:v1", ("mirror:5000", "a/b", "v1", "")),
        ("localhost/a:1", ("localhost", "a", "1", "")),
        ("a/b@sha256:" + "b" * 64, ("", "a/b", "", "sha256:" + "b" * 64)),
        ("nvcr.io/x/y:1@sha256:" + "b" * 64, ("nvcr.io", "x/y", "1", "sha256:" + "b" * 64)),
    ],
)
def test_the_server_image_is_the_one_of_the_build_record(
    image: str, expected: tuple[str, ...], make_record: MakeRecord, make_plan: MakePlan
) -> None:
    record = make_record(inputs={"image": image})
    server = make_values(record, make_plan(), H100, reference=REFERENCE).as_dict()["images"]["server"]

    assert (server["registry"], server["repository"], server["tag"], server["digest"]) == expected


def test_an_image_that_is_none_is_refused(make_record: MakeRecord, make_plan: MakePlan) -> None:
    with pytest.raises(DocumentError, match="is no image"):
        make_values(make_record(inputs={"image": "not an image"}), make_plan(), H100, reference=REFERENCE)


@pytest.mark.parametrize(
    "reference", ["s3://models/llama:v1", "s3://models/llama", "models/llama", "s3://models/llama@sha256:1"]
)
def test_a_reference_that_names_no_one_artifact_is_refused(
    reference: str, make_record: MakeRecord, make_plan: MakePlan
) -> None:
    with pytest.raises(BadReferenceError):
        make_values(make_record(), make_plan(), H100, reference=reference)


def test_the_tag_of_a_recipe_is_accepted_without_a_digest(make_record: MakeRecord, make_plan: MakePlan) -> None:
    reference = "s3://models/llama:recipe-0123abcd"

    assert make_values(make_record(), make_plan(), H100, reference=reference).as_dict()["artifact"]["ref"] == reference


@pytest.mark.parametrize(
    ("plan", "word"),
    [
        ({"gpu": "h200"}, "GPU class"),
        ({"runtime": "pytorch"}, "runtime"),
        ({"precision": "float16"}, "precision"),
        ({"tp": 8}, "world size"),
    ],
)
def test_a_plan_of_another_engine_is_refused(
    plan: dict[str, Any], word: str, make_record: MakeRecord, make_plan: MakePlan
) -> None:
    with pytest.raises(IncompatibleError, match=word):
        make_values(make_record(), make_plan(**plan), H100, reference=REFERENCE)


def test_an_engine_for_another_architecture_is_refused(make_record: MakeRecord, make_plan: MakePlan) -> None:
    record = make_record(requires=Requires(sm="80", world_size=4))

    with pytest.raises(IncompatibleError, match="compute capability 80 was built and 90"):
        make_values(record, make_plan(), H100, reference=REFERENCE)


NAMES = st.text(st.characters(codec="utf-8"), max_size=40)


@given(
    name=NAMES, value=st.one_of(NAMES, st.integers(), st.booleans(), st.none(), st.lists(NAMES, max_size=3)), why=NAMES
)
def test_any_text_survives_the_way_through_the_file(name: str, value: Any, why: str) -> None:
    values = Values(title=name, settings=(Setting("a.b", value, why), Setting("a.c", name, why)))

    assert yaml.safe_load(values.to_yaml()) == {"a": {"b": value, "c": name}}


@given(size=st.integers(0, 1 << 50))
def test_a_quantity_is_never_smaller_than_its_bytes_and_at_most_a_mebibyte_larger(size: int) -> None:
    text = quantity(size)
    found = int(text[:-2]) * {"Mi": MIB, "Gi": GIB}[text[-2:]]

    assert size <= found < size + MIB
