"""Over how many GPUs, over which links, with which experts where; and what is named where a model does not fit."""

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom import gpus
from engineroom.checkpoint.shape import ModelShape, parse_shape
from engineroom.errors import DoesNotFitError, RecipeError
from engineroom.planning.parallelism import expert_groups, fills_nodes, legal_splits, tensor_problem
from engineroom.planning.parameters import count_parameters
from engineroom.planning.plan import Plan
from engineroom.planning.replica import plan_replica
from engineroom.planning.rules import rules_of_thumb
from engineroom.recipe import Recipe

CONFIGS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "reference" / "configs.json").read_text(encoding="utf-8")
)
LLAMA_70B, MIXTRAL = "meta-llama/Meta-Llama-3.1-70B", "mistralai/Mixtral-8x7B-v0.1"
QWEN_MOE, DEEPSEEK = "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V3"


def shape_of(name: str, **changes: Any) -> ModelShape:
    return parse_shape({**CONFIGS[name], **changes}, where=name)


def planned(name: str, shape: ModelShape | None = None, **changes: Any) -> Plan:
    shape = shape or shape_of(name)
    recipe: dict[str, Any] = {
        "model": {"source": f"hf://{name}"}, "gpu": "h100", "runtime": "tensorrt", "precision": "bfloat16",
    }  # fmt: skip
    return plan_replica(Recipe.model_validate(recipe | changes), shape, parameters=count_parameters(shape))


REFUSED: list[tuple[str, dict[str, Any]]] = [
    (LLAMA_70B, {"gpu": "l40s", "precision": "float16", "parallelism": {"tensor": 1, "pipeline": 1}}),
    (
        LLAMA_70B,
        {"limits": {"max_input_len": 8192, "max_output_len": 100_000}, "parallelism": {"tensor": 2, "pipeline": 1}},
    ),
    (LLAMA_70B, {"gpu": "h100-1g.10gb", "precision": "fp8"}),
    (MIXTRAL, {"gpu": "a10g", "precision": "bfloat16", "parallelism": {"tensor": 4, "pipeline": 1}}),
    (DEEPSEEK, {"gpu": "gb200", "runtime": "pytorch", "parallelism": {"tensor": 4, "pipeline": 1}}),
]


@pytest.mark.parametrize(("name", "changes"), REFUSED)
def test_what_a_refusal_names_does_work(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(DoesNotFitError) as refused:
        planned(name, **changes)
    named = re.findall(r"(\d+) × ([a-z0-9.-]+)(?: in (\w+)| \(parallelism)", refused.value.fix)
    assert named
    for count, gpu, precision in named:
        works = planned(
            name,
            **changes | {"gpu": gpu, "parallelism": {}, "precision": precision or changes.get("precision", "bfloat16")},
        )
        assert works.world_size == int(count)


def test_70b_that_does_not_fit_one_l40s_is_told_the_nearest_that_fit() -> None:
    with pytest.raises(DoesNotFitError) as refused:
        planned(LLAMA_70B, **REFUSED[0][1])
    assert "GiB of each l40s, which has 44.3 (131.4 GiB are weights)" in refused.value.found
    assert refused.value.fix == (
        "it fits 4 × l40s (parallelism.tensor: 4, parallelism.pipeline: 1), 2 × l40s in fp8 or 1 × b200 in float16"
    )


def test_a_model_that_fits_no_gpu_says_what_to_lower() -> None:
    huge = shape_of(LLAMA_70B, num_hidden_layers=79, hidden_size=65536, intermediate_size=1 << 18)
    with pytest.raises(DoesNotFitError) as refused:
        planned(LLAMA_70B, huge, gpu="l4")
    assert refused.value.fix == "choose a smaller `precision`, smaller `limits` or more memory"


def test_ranks_stay_on_the_bridge_that_joins_two_cards() -> None:
    """Four H100 NVL: two pairs, each splitting layers over its bridge, rather than four over PCIe."""
    splits = list(legal_splits(shape_of(LLAMA_70B), gpus.find("h100-nvl")))
    assert splits.index((2, 2)) < splits.index((4, 1))
    splits = list(legal_splits(shape_of(LLAMA_70B), gpus.find("h100")))
    assert splits.index((4, 1)) < splits.index((2, 2))
    over_pcie = planned(LLAMA_70B, gpu="h100-nvl", parallelism={"tensor": 4})
    assert any("goes over PCIe (64 GB/s)" in note for note in over_pcie.notes)
    assert not planned(LLAMA_70B, gpu="h100-nvl", parallelism={"tensor": 2}).notes


def test_mig_instances_are_never_joined() -> None:
    half = gpus.find("h100-3g.40gb")
    assert list(legal_splits(shape_of(LLAMA_70B), half)) == [(1, 1)]
    for asked in ({"tensor": 2}, {"pipeline": 2}):
        with pytest.raises(RecipeError, match="use 1"):
            planned("meta-llama/Meta-Llama-3.1-8B", gpu=half.name, parallelism=asked)
    assert planned("meta-llama/Meta-Llama-3.1-8B", gpu=half.name).world_size == 1


@pytest.mark.parametrize(
    ("name", "tensor", "ep"),
    [(MIXTRAL, 8, 1), (QWEN_MOE, 4, 4), (DEEPSEEK, 8, 8), (LLAMA_70B, 8, 1)],
)
def test_many_narrow_experts_are_shared_out_and_few_wide_ones_split(name: str, tensor: int, ep: int) -> None:
    plan = planned(name, gpu="b200", runtime="pytorch", parallelism={"tensor": tensor})
    assert (plan.tp, plan.ep) == (tensor, ep)


def test_a_number_of_expert_groups_is_kept_or_refused_with_those_that_go() -> None:
    assert planned(MIXTRAL, parallelism={"tensor": 4, "expert": 2}).ep == 2
    with pytest.raises(RecipeError) as refused:
        planned(MIXTRAL, parallelism={"tensor": 4, "expert": 3})
    assert (refused.value.where, refused.value.fix) == ("parallelism.expert", "use 1, 2 or 4")
    with pytest.raises(RecipeError, match="LlamaForCausalLM has no experts to share out; use 1"):
        planned(LLAMA_70B, parallelism={"expert": 2})


def test_experts_that_no_grouping_divides_are_refused() -> None:
    odd = shape_of(QWEN_MOE, num_experts=9, moe_intermediate_size=513)
    assert expert_groups(odd, 4) == []
    assert tensor_problem(odd, 4) == "9 experts of 513 cannot be split over 4 GPUs"
    assert expert_groups(shape_of(QWEN_MOE), 4) == [1, 2, 4]


def test_a_latent_cache_needs_no_kv_heads_to_divide() -> None:
    assert tensor_problem(shape_of(DEEPSEEK, num_key_value_heads=3), 8) is None


def test_uneven_stages_are_for_the_pytorch_backend_only() -> None:
    with pytest.raises(RecipeError, match="80 layers cannot be split evenly over 3"):
        planned(LLAMA_70B, parallelism={"tensor": 8, "pipeline": 3})
    assert planned(LLAMA_70B, runtime="pytorch", parallelism={"tensor": 8, "pipeline": 3}).pp == 3


def test_weights_in_fp8_blocks_run_where_there_are_kernels_for_them() -> None:
    stored = shape_of(DEEPSEEK, quantization_config={"quant_method": "fp8"})
    fits: dict[str, Any] = {"gpu": "h200", "runtime": "pytorch", "precision": "fp8"}
    assert planned(DEEPSEEK, stored, **fits).world_size == 8
    for change, said in (
        ({"runtime": "tensorrt"}, "the runtime tensorrt cannot convert"),
        ({"precision": "bfloat16"}, "stored in fp8, not bfloat16"),
        ({"gpu": "l40s"}, "no kernels for weights in fp8 blocks"),
    ):
        with pytest.raises(RecipeError, match=said):
            planned(DEEPSEEK, stored, **fits | change)


@given(
    name=st.sampled_from(sorted(CONFIGS)),
    gpu=st.sampled_from([name for name, gpu in gpus.shipped().items() if not gpu.is_cpu]),
    runtime=st.sampled_from(["tensorrt", "pytorch"]),
)
def test_every_legal_split_divides_what_it_splits(name: str, gpu: str, runtime: gpus.Runtime) -> None:
    shape, card = shape_of(name), gpus.find(gpu)
    for tp, pp in legal_splits(shape, card, runtime=runtime):
        assert tp <= card.gpus_per_node
        assert shape.heads % tp == 0
        assert shape.layers >= pp
        assert shape.layers % pp == 0 or runtime == "pytorch"
        assert expert_groups(shape, tp)


@given(name=st.sampled_from(sorted(CONFIGS)), gpu=st.sampled_from(["l4", "l40s", "a100", "h100", "h100-nvl", "b200"]))
def test_a_plan_leaves_no_gpu_of_a_node_idle_and_never_exceeds_memory(name: str, gpu: str) -> None:
    limits = {"max_batch_size": 8, "max_input_len": 500, "max_output_len": 12, "max_num_tokens": 2048}
    plan = planned(name, gpu=gpu, runtime="pytorch", limits=limits)
    card = gpus.find(gpu)
    assert fills_nodes((plan.tp, plan.pp), card)
    assert plan.memory.total <= plan.memory.visible < card.nominal_gib * gpus.GIB
    assert plan.kv_tokens >= 512
    assert plan.kv_tokens * plan.kv_bytes_per_token <= plan.memory.kv * plan.world_size


def test_rules_of_thumb_stand_beside_what_is_computed() -> None:
    plan = planned(LLAMA_70B)
    rules = {rule.subject: str(rule) for rule in rules_of_thumb(plan, gpus.find("h100"))}
    assert list(rules) == ["GPU memory", "CPU cores", "loading", "network"]
    assert rules["network"].endswith("a replica stays on one node")
    assert "1.5 × model size = 197.1 GiB" in rules["GPU memory"]  # 1.5 × 70.55 × 10⁹ × 2 bytes
    assert "4-8 a GPU = 8-16; computed: 12" in rules["CPU cores"]
    assert f"{plan.pod.load_seconds:,} s planned" in rules["loading"]


def test_the_network_matters_from_two_nodes_on() -> None:
    plan = planned("meta-llama/Meta-Llama-3.1-405B")
    assert plan.world_size == 16
    network = next(rule for rule in rules_of_thumb(plan, gpus.find("h100")) if rule.subject == "network")
    # 8,192 tokens × 16,384 values × 2 bytes over 1.25 GB/s.
    assert network.computed.startswith("215 ms for each step of 8,192 tokens at that rate, 5.4 ms at the 50 GB/s")


def test_a_window_that_no_runtime_is_told_of_is_noted() -> None:
    long = {"max_input_len": 7000, "max_output_len": 1000}
    (note,) = planned("google/gemma-2-27b-it", limits=long).notes
    assert note.startswith("23 of 46 layers see 4,096 tokens only")
    assert planned("google/gemma-2-27b-it").notes == []


@pytest.mark.parametrize(
    ("name", "exact", "why"),
    [
        ("mistralai/Mistral-7B-v0.1", 4096, "the sliding window"),
        ("google/gemma-3-1b-it", 512, "the sliding window"),
        ("microsoft/Phi-4-mini-instruct", 4096, "the length that rotary factors are for"),
    ],
)
def test_the_cpu_engine_stays_where_it_computes_what_the_model_does(name: str, exact: int, why: str) -> None:
    def on_cpu(length: int) -> Plan:
        limits = {"max_batch_size": 1, "max_input_len": length - 100, "max_output_len": 100}
        return planned(name, gpu="cpu", runtime="ctranslate2", precision="int8", limits=limits)

    assert on_cpu(exact).limits.max_seq_len == exact
    with pytest.raises(RecipeError, match=why) as refused:
        on_cpu(exact + 1)
    assert refused.value.fix == f"lower limits.max_input_len to {exact - 100} or less, or use a GPU class"
    with pytest.raises(RecipeError) as refused:
        planned(
            name, gpu="cpu", runtime="ctranslate2", precision="int8",
            limits={"max_input_len": 10, "max_output_len": exact, "max_batch_size": 1},
        )  # fmt: skip
    assert refused.value.where == "limits.max_output_len"


PUBLISHED_RUNS = {
    "llama-3.1-8b": "meta-llama/Meta-Llama-3.1-8B",
    "llama-3.1-70b": LLAMA_70B,
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "mixtral-8x7b": MIXTRAL,
    "mixtral-8x22b": "mistralai/Mixtral-8x22B-v0.1",
}


def test_every_run_that_nvidia_published_fits() -> None:
    """TensorRT-LLM's perf-overview.md (v0.17): what ran over so many GPUs must not be refused for memory."""
    folder = os.environ.get("ENGINEROOM_REFERENCE_DATA")
    if not folder:
        pytest.skip("ENGINEROOM_REFERENCE_DATA does not name the folder with trtllm_throughput.csv")
    with (Path(folder) / "trtllm_throughput.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["model"].lower() in PUBLISHED_RUNS]
    assert len(rows) > 100
    for row in rows:
        prompt, answer = int(row["isl"]), int(row["osl"])
        plan = planned(
            PUBLISHED_RUNS[row["model"].lower()],
            gpu=row["gpu"].lower(),
            precision={"FP8": "fp8", "FP16": "float16", "BF16": "bfloat16"}[row["precision"]],
            parallelism={"tensor": int(row["tp"]), "pipeline": int(row["pp"] or 1)},
            limits={
                "max_batch_size": 8, "max_input_len": prompt, "max_output_len": answer,
                "max_num_tokens": max(prompt, 2048),
            },
        )  # fmt: skip
        assert plan.memory.total <= plan.memory.visible
