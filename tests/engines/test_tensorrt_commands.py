"""Every command that the recipe can lead to, held against the table of flags with their sources."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from engineroom import gpus
from engineroom.checkpoint.shape import ModelShape, parse_shape
from engineroom.engines import tensorrt_commands as commands
from engineroom.engines.tensorrt_families import SCRIPTS
from engineroom.engines.tensorrt_versions import PINNED, STACKS, find
from engineroom.errors import DoesNotFitError, InputError, RecipeError
from engineroom.planning.parameters import count_parameters
from engineroom.planning.plan import Plan
from engineroom.planning.replica import plan_replica
from engineroom.recipe import Recipe

LLAMA_8B = ModelShape(
    architecture="LlamaForCausalLM", family="llama", vocab_size=128256, hidden_size=4096, intermediate_size=14336,
    layers=32, heads=32, kv_heads=8, head_dim=128, max_positions=131072, tie_embeddings=False, dtype="bfloat16",
    norm_epsilon=1e-5, rope_theta=500000.0,
)  # fmt: skip
KV_TYPES = ("auto", "float16", "bfloat16", "fp8", "int8")
SPLITS = ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (2, 4), (8, 4))


PUBLISHED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "planning" / "reference" / "configs.json").read_text(encoding="utf-8")
)
FAMILIES = {
    "mistral": "mistralai/Mistral-7B-v0.1",
    "mixtral": "mistralai/Mixtral-8x7B-v0.1",
    "qwen2": "Qwen/Qwen2.5-7B-Instruct",
    "qwen2_moe": "Qwen/Qwen1.5-MoE-A2.7B",
    "qwen3": "Qwen/Qwen3-32B",
    "qwen3_moe": "Qwen/Qwen3-30B-A3B",
    "gemma2": "google/gemma-2-9b-it",
    "phi3": "microsoft/phi-4",
    "gpt2": "openai-community/gpt2",
}


def a_plan(*, family: str = "llama", dtype: str = "bfloat16", **changes: Any) -> Plan:
    values = {"model": {"source": "hf://org/model"}, "gpu": "h100", "runtime": "tensorrt", "precision": "fp8"}
    shape = LLAMA_8B if family == "llama" else parse_shape(PUBLISHED[FAMILIES[family]], where=family)
    shape = shape.model_copy(update={"dtype": dtype})
    return plan_replica(Recipe.model_validate(values | changes), shape, parameters=count_parameters(shape))


def both(plan: Plan, *, timing_input: Path | None = None) -> tuple[commands.Command, commands.Command]:
    return (
        commands.checkpoint_command(plan, model=Path("/checkpoint"), output=Path("/scratch")),
        commands.build_command(
            plan,
            checkpoint=Path("/scratch"),
            output=Path("/engine"),
            timing_output=Path("/timing"),
            timing_input=timing_input,
        ),
    )


def all_plans() -> Iterator[Plan]:
    """Precision × KV type × stored type × GPU class × split, without those that planning refuses."""
    for gpu in gpus.catalogue().values():
        if gpu.is_cpu:
            continue
        for precision in gpu.precisions:
            for kv in KV_TYPES:
                for dtype in ("bfloat16", "float16", "float32"):
                    for tensor, pipeline in SPLITS:
                        try:
                            yield a_plan(
                                dtype=dtype,
                                gpu=gpu.name,
                                precision=precision,
                                kv_cache={"dtype": kv},
                                parallelism={"tensor": tensor, "pipeline": pipeline},
                            )
                        except (RecipeError, DoesNotFitError):
                            continue


def family_plans() -> Iterator[Plan]:
    """Each other family, with what its script lists: precision × KV type × type × split × expert parallelism."""
    limits = {"max_batch_size": 4, "max_input_len": 500, "max_output_len": 100, "max_num_tokens": 1024}
    for family, gpu, dtype in itertools.product(FAMILIES, ("h100", "b200"), ("bfloat16", "float16")):
        for precision, kv, split in itertools.product(
            gpus.find(gpu).precisions,
            ("auto", "fp8", "int8"),
            ((1, 1, "auto"), (2, 1, "auto"), (4, 1, 4), (1, 2, "auto")),
        ):
            tensor, pipeline, expert = split
            try:
                plan = a_plan(
                    family=family, dtype=dtype, gpu=gpu, precision=precision, kv_cache={"dtype": kv}, limits=limits,
                    parallelism={"tensor": tensor, "pipeline": pipeline, "expert": expert},
                )  # fmt: skip
                commands.check_buildable(plan)
            except (RecipeError, DoesNotFitError, InputError):
                continue
            yield plan


def flags_of(command: commands.Command) -> list[tuple[str, str | None]]:
    """(flag, value) pairs of a command; a word that is neither is an error of the command."""
    words = list(command.argv[1 if command.tool == "trtllm-build" else 2 :])
    pairs: list[tuple[str, str | None]] = []
    while words:
        flag = words.pop(0)
        assert flag.startswith("--"), f"{flag} stands where a flag should"
        pairs.append((flag, words.pop(0) if words and not words[0].startswith("--") else None))
    return pairs


def problem(tool: str, flag: str, value: str | None) -> str | None:
    """What the table of flags has against a flag and its value."""
    entry = commands.flag_table().get(tool, {}).get(flag)
    if entry is None:
        return f"{tool} {flag} is not in the table"
    kind = entry["value"]
    if value is None or kind == "switch":
        good = value is None and kind == "switch"
    elif kind == "path":
        good = value.startswith("/")
    elif kind == "name":
        good = re.fullmatch(r"[\w./-]+", value) is not None
    elif kind == "choice":
        good = value in entry["of"]
    else:
        good = value.isdigit() and entry["min"] <= int(value) <= entry["max"]
    return None if good else f"{tool} {flag} does not take {value}"


@pytest.fixture(scope="module")
def emitted() -> dict[tuple[str, str], set[str | None]]:
    """All that any combination emits: (tool, flag) → values."""
    found: dict[tuple[str, str], set[str | None]] = {}
    count = 0
    for plan in itertools.chain(all_plans(), family_plans()):
        count += 1
        for command in both(plan, timing_input=Path("/timing")):
            for flag, value in flags_of(command):
                found.setdefault((command.tool, flag), set()).add(value)
    assert count > 1000
    return found


def test_every_flag_and_value_that_any_recipe_leads_to_stands_in_the_table(
    emitted: dict[tuple[str, str], set[str | None]],
) -> None:
    problems = [problem(tool, flag, value) for (tool, flag), values in emitted.items() for value in values]
    assert [words for words in problems if words] == []


def test_every_entry_of_the_table_is_emitted_by_some_recipe(emitted: dict[tuple[str, str], set[str | None]]) -> None:
    entries = {(tool, flag) for tool, flags in commands.flag_table().items() for flag in flags}
    assert entries - set(emitted) == set()


def test_every_choice_of_the_table_is_emitted_by_some_recipe(
    emitted: dict[tuple[str, str], set[str | None]],
) -> None:
    for tool, flags in commands.flag_table().items():
        for flag, entry in flags.items():
            if entry["value"] == "choice":
                assert emitted[tool, flag] == set(entry["of"]), flag


@pytest.mark.parametrize(
    ("tool", "flag", "value"),
    [
        ("trtllm-build", "--max_output_len", "512"),
        ("trtllm-build", "--tp_size", "4"),
        ("trtllm-build", "--remove_input_padding", None),
        ("trtllm-build", "--gemm_plugin", "fp16"),
        ("trtllm-build", "--max_batch_size", "0"),
        ("trtllm-build", "--output_dir", "relative/folder"),
        ("quantize.py", "--qformat", "int8"),
        ("convert_checkpoint.py", "--use_weight_only", "int8"),
    ],
)
def test_the_comparison_finds_what_is_not_in_the_table(tool: str, flag: str, value: str | None) -> None:
    assert problem(tool, flag, value) is not None


def test_every_entry_cites_a_source_and_a_recipe_key() -> None:
    path = Path(commands.__file__).with_name("tensorrt_flags.yaml")
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert data["release"] == PINNED.trtllm
    for tool in data["tools"].values():
        assert "@" in tool["source"]
        for flag, entry in tool["flags"].items():
            assert flag.removeprefix("--") in entry["source"], flag
            assert entry["recipe"], flag


@pytest.mark.parametrize(
    ("precision", "gpu", "script", "flags"),
    [
        ("bfloat16", "a100", "models/core/llama/convert_checkpoint.py", "--dtype bfloat16"),
        ("float16", "a100", "models/core/llama/convert_checkpoint.py", "--dtype float16"),
        ("int8", "a100", "models/core/llama/convert_checkpoint.py", "--use_weight_only --weight_only_precision int8"),
        ("int4", "l4", "models/core/llama/convert_checkpoint.py", "--use_weight_only --weight_only_precision int4"),
        ("fp8", "h100", "quantization/quantize.py", "--qformat fp8"),
        ("nvfp4", "b200", "quantization/quantize.py", "--qformat nvfp4"),
        ("int4_awq", "a10g", "quantization/quantize.py", "--qformat int4_awq"),
        ("w4a8_awq", "l40s", "quantization/quantize.py", "--qformat w4a8_awq"),
    ],
)
def test_each_precision_goes_through_its_script(precision: str, gpu: str, script: str, flags: str) -> None:
    command, _ = both(a_plan(precision=precision, gpu=gpu))
    assert command.argv[:2] == ("python3", f"/app/examples/{script}")
    assert flags in " ".join(command.argv)


def test_the_split_is_given_to_the_checkpoint_and_never_to_the_build() -> None:
    checkpoint, build = both(a_plan(parallelism={"tensor": 4, "pipeline": 2}))
    assert ("--tp_size", "4") in flags_of(checkpoint)
    assert ("--pp_size", "2") in flags_of(checkpoint)
    assert not {"--tp_size", "--pp_size", "--world_size"} & {flag for flag, _ in flags_of(build)}
    assert ("--workers", "8") in flags_of(build)


def test_one_node_builds_no_more_ranks_at_once_than_it_has_gpus() -> None:
    _, build = both(a_plan(parallelism={"tensor": 8, "pipeline": 4}))
    assert ("--workers", "8") in flags_of(build)


def test_the_limits_of_the_recipe_reach_the_build() -> None:
    _, build = both(
        a_plan(limits={"max_batch_size": 7, "max_input_len": 500, "max_output_len": 12, "max_num_tokens": 600})
    )
    wanted = {"--max_batch_size": "7", "--max_input_len": "500", "--max_seq_len": "512", "--max_num_tokens": "600"}
    assert wanted.items() <= dict(flags_of(build)).items()


def test_in_flight_batching_has_its_prerequisites_in_every_engine() -> None:
    for plan in (a_plan(), a_plan(precision="bfloat16"), a_plan(precision="int8", gpu="a100")):
        flags = dict(flags_of(both(plan)[1]))
        assert flags["--kv_cache_type"] == "paged"
        assert (
            flags["--remove_input_padding"] == flags["--context_fmha"] == flags["--use_paged_context_fmha"] == "enable"
        )


@pytest.mark.parametrize(
    ("changes", "paged", "fp8"),
    [
        ({}, "enable", "enable"),
        ({"kv_cache": {"dtype": "bfloat16"}}, "enable", "disable"),
        ({"precision": "bfloat16", "kv_cache": {"dtype": "fp8"}}, "disable", "disable"),
        ({"gpu": "a100", "precision": "int8", "kv_cache": {"dtype": "int8"}}, "disable", "disable"),
        ({"gpu": "a100", "precision": "int4_awq", "kv_cache": {"dtype": "fp8"}}, "disable", "disable"),
        ({"gpu": "b200", "precision": "nvfp4", "kv_cache": {"dtype": "fp8"}}, "enable", "enable"),
    ],
)
def test_what_the_build_would_switch_off_with_a_warning_is_off_in_the_key(
    changes: dict[str, Any], paged: str, fp8: str
) -> None:
    chosen = commands.plugins(a_plan(**changes))
    assert (chosen["use_paged_context_fmha"], chosen["use_fp8_context_fmha"]) == (paged, fp8)


def test_16_bit_weights_with_fp8_keys_and_values_are_calibrated_without_being_quantised() -> None:
    flags = dict(flags_of(both(a_plan(precision="bfloat16", kv_cache={"dtype": "fp8"}))[0]))
    assert (flags["--qformat"], flags["--kv_cache_dtype"]) == ("full_prec", "fp8")


def test_a_plain_conversion_leaves_the_gpu_alone_and_a_calibrating_one_uses_it() -> None:
    plain, _ = both(a_plan(precision="int8", gpu="a100"))
    calibrating, _ = both(a_plan(precision="int8", gpu="a100", kv_cache={"dtype": "int8"}))
    assert "--load_model_on_cpu" in plain.argv
    assert "--load_model_on_cpu" not in calibrating.argv
    assert {"--int8_kv_cache", "--calib_dataset"} <= set(calibrating.argv)


@pytest.mark.parametrize(("precision", "size"), [("fp8", 512), ("int4_awq", 32)])
def test_the_recorded_calibration_is_what_the_tool_will_use(precision: str, size: int) -> None:
    data = commands.calibration(a_plan(precision=precision))
    assert data is not None
    assert (data["dataset"], data["size"]) == ("cnn_dailymail", size)


def test_nothing_is_calibrated_where_nothing_has_to_be() -> None:
    assert commands.calibration(a_plan(precision="bfloat16")) is None


def test_a_timing_cache_is_read_only_where_there_is_one() -> None:
    plan = a_plan()
    assert "--input_timing_cache" not in both(plan)[1].argv
    assert both(plan, timing_input=Path("/timing"))[1].argv[-2:] == ("--input_timing_cache", "/timing")


def test_a_precision_that_the_class_lacks_is_refused_and_one_that_it_has_is_not() -> None:
    plan = a_plan()
    with pytest.raises(InputError, match=r"a100 \(SM 80\) has no fp8"):
        commands.check_buildable(plan.model_copy(update={"gpu": "a100"}))
    commands.check_buildable(plan.model_copy(update={"gpu": "a100", "precision": "int8"}))


def test_an_unknown_family_and_the_class_cpu_are_refused() -> None:
    plan = a_plan()
    other = plan.model.model_copy(update={"family": "whale"})
    with pytest.raises(InputError, match="no conversion script for the family whale"):
        commands.check_buildable(plan.model_copy(update={"model": other}))
    with pytest.raises(InputError, match="needs a GPU"):
        commands.check_buildable(plan.model_copy(update={"gpu": "cpu"}))


def test_every_family_with_a_script_is_tried() -> None:
    assert set(FAMILIES) | {"llama"} == set(SCRIPTS)


@pytest.mark.parametrize(
    ("family", "changes", "script", "flags"),
    [
        ("mistral", {"precision": "int8"}, "llama/convert_checkpoint.py", "--weight_only_precision int8"),
        ("mixtral", {"precision": "bfloat16", "parallelism": {"tensor": 4, "expert": 2}},
         "llama/convert_checkpoint.py", "--moe_tp_size 2 --moe_ep_size 2"),
        ("mixtral", {"precision": "bfloat16", "parallelism": {"tensor": 4}},
         "llama/convert_checkpoint.py", "--moe_tp_size 4 --moe_ep_size 1"),
        ("qwen2", {"precision": "bfloat16", "parallelism": {"tensor": 4, "pipeline": 2}},
         "qwen/convert_checkpoint.py", "--tp_size 4 --pp_size 2 --load_model_on_cpu"),
        ("qwen3_moe", {"precision": "bfloat16", "parallelism": {"tensor": 4, "expert": 4}},
         "qwen/convert_checkpoint.py", "--moe_tp_size 1 --moe_ep_size 4"),
        ("gemma2", {"precision": "bfloat16", "parallelism": {"tensor": 2}},
         "gemma/convert_checkpoint.py", "--ckpt-type hf --world-size 2"),
        ("phi3", {"precision": "bfloat16"}, "phi/convert_checkpoint.py", "--tp_size 1 --pp_size 1"),
        ("gpt2", {"precision": "float16", "kv_cache": {"dtype": "int8"}},
         "gpt/convert_checkpoint.py", "--int8_kv_cache --calib_dataset lambada"),
    ],
)  # fmt: skip
def test_each_family_goes_through_its_script(family: str, changes: dict[str, Any], script: str, flags: str) -> None:
    limits = {"max_input_len": 500, "max_output_len": 100}
    plan = a_plan(family=family, limits=limits, **changes)
    commands.check_buildable(plan)
    command, _ = both(plan)
    assert command.argv[1] == f"/app/examples/models/core/{script}"
    assert flags in " ".join(command.argv)


def test_the_phi_script_cannot_load_on_the_cpu_and_gemma_takes_no_tp_size() -> None:
    phi, gemma = (both(a_plan(family=family, precision="bfloat16"))[0].argv for family in ("phi3", "gemma2"))
    assert "--load_model_on_cpu" not in phi
    assert not {"--tp_size", "--pp_size"} & set(gemma)


@pytest.mark.parametrize(
    ("family", "changes", "found", "legal"),
    [
        ("qwen2_moe", {"precision": "fp8"}, "lists no fp8 engine for the family qwen2_moe", {"precision": "bfloat16"}),
        ("qwen3", {"precision": "int4"}, "lists no int4 engine for the family qwen3", {"precision": "fp8"}),
        ("phi3", {"parallelism": {"tensor": 2}}, "phi3 has no tensor parallelism", {}),
        ("qwen3", {"parallelism": {"pipeline": 2}}, "has no pipeline parallelism", {"parallelism": {"tensor": 2}}),
        ("mixtral", {"parallelism": {"tensor": 4, "expert": 4}}, "quantize.py takes no expert parallelism",
         {"precision": "bfloat16"}),
        ("qwen2_moe", {"precision": "bfloat16", "parallelism": {"tensor": 4, "expert": 4}},
         "qwen2_moe has no expert parallelism", {"parallelism": {"tensor": 4}}),
        ("phi3", {"precision": "int8", "kv_cache": {"dtype": "int8"}}, "has no int8 keys and values",
         {"kv_cache": {"dtype": "auto"}}),
        ("qwen2_moe", {"precision": "bfloat16", "kv_cache": {"dtype": "fp8"}}, "no fp8 keys and values",
         {"kv_cache": {"dtype": "auto"}}),
    ],
)  # fmt: skip
def test_what_a_family_has_no_engine_for_is_refused_and_its_neighbour_is_not(
    family: str, changes: dict[str, Any], found: str, legal: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=found) as refused:
        commands.check_buildable(a_plan(family=family, **changes))
    assert refused.value.fix
    commands.check_buildable(a_plan(family=family, **(changes | legal if legal else {})))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (
            "google/gemma-3-1b-it",
            "no conversion script for the family gemma3: TensorRT-LLM 1.2.1 lists it for its PyTorch",
        ),
        ("deepseek-ai/DeepSeek-V2-Lite", "no conversion script for the family deepseek_v2"),
        ("microsoft/Phi-4-mini-instruct", "partial rotary positions (Phi-4-mini) has no engine"),
    ],
)
def test_families_of_the_pytorch_backend_only_are_refused_by_name(name: str, found: str) -> None:
    plan = a_plan(precision="bfloat16")
    other = plan.model_copy(update={"model": parse_shape(PUBLISHED[name], where=name)})
    with pytest.raises(InputError) as refused:
        commands.check_buildable(other)
    assert found in refused.value.found
    assert "pytorch" in refused.value.fix


def test_images_of_the_same_release_are_known_and_others_refused() -> None:
    assert find(PINNED.image) is PINNED
    assert {(stack.trtllm, stack.tensorrt) for stack in STACKS} == {("1.2.1", "10.14.1.48")}
    with pytest.raises(InputError, match="unknown image"):
        find("nvcr.io/nvidia/tritonserver:26.03-trtllm-python-py3")
