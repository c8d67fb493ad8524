"""From a recipe and a shape to a plan, or to one clear refusal."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engineroom import gpus
from engineroom.checkpoint.record import record_checkpoint
from engineroom.checkpoint.shape import ModelShape
from engineroom.errors import CheckpointError, DoesNotFitError, EngineroomError, RecipeError
from engineroom.planning import parallelism, replica
from engineroom.planning.memory import Load
from engineroom.planning.parameters import count_parameters
from engineroom.planning.plan import Plan, PlannedLimits
from engineroom.planning.replica import make_plan, parameters_source, plan_replica
from engineroom.recipe import Parallelism, Recipe

LLAMA_8B = ModelShape(
    architecture="LlamaForCausalLM", family="llama", vocab_size=128256, hidden_size=4096, intermediate_size=14336,
    layers=32, heads=32, kv_heads=8, head_dim=128, max_positions=131072, tie_embeddings=False, dtype="bfloat16",
    norm_epsilon=1e-5, rope_theta=500000.0,
)  # fmt: skip
LLAMA_70B = LLAMA_8B.model_copy(update={"hidden_size": 8192, "intermediate_size": 28672, "layers": 80, "heads": 64})
SMOLLM2 = LLAMA_8B.model_copy(
    update={
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "layers": 30, "heads": 9, "kv_heads": 3,
        "head_dim": 64, "max_positions": 8192, "tie_embeddings": True,
    }
)  # fmt: skip


def a_recipe(**changes: Any) -> Recipe:
    values = {"model": {"source": "hf://org/model"}, "gpu": "h100", "runtime": "tensorrt", "precision": "fp8"}
    return Recipe.model_validate(values | changes)


def planned(shape: ModelShape = LLAMA_8B, **changes: Any) -> Plan:
    return plan_replica(a_recipe(**changes), shape, parameters=count_parameters(shape))


@pytest.mark.parametrize(
    ("shape", "gpu", "precision", "split"),
    [
        (LLAMA_8B, "h100", "bfloat16", (1, 1)),
        (LLAMA_8B, "a10g", "bfloat16", (1, 1)),
        (LLAMA_8B, "l4", "fp8", (1, 1)),
        (LLAMA_70B, "h100", "bfloat16", (2, 1)),
        (LLAMA_70B, "h100", "fp8", (1, 1)),
        (LLAMA_70B, "a100-40g", "int4_awq", (2, 1)),
        (LLAMA_70B, "a10g", "bfloat16", (8, 1)),
    ],
)
def test_the_smallest_split_that_fits_is_found(
    shape: ModelShape, gpu: str, precision: str, split: tuple[int, int]
) -> None:
    plan = planned(shape, gpu=gpu, precision=precision)
    assert (plan.tp, plan.pp) == split
    assert plan.memory.total <= plan.memory.visible
    assert plan.kv_tokens >= plan.limits.max_seq_len


def test_numbers_in_the_recipe_are_kept_though_fewer_gpus_would_do() -> None:
    plan = planned(LLAMA_70B, parallelism={"tensor": 4, "pipeline": 2})
    assert (plan.tp, plan.pp, plan.world_size) == (4, 2, 8)


def test_a_split_that_is_too_small_names_the_one_that_fits() -> None:
    with pytest.raises(DoesNotFitError) as refusal:
        planned(LLAMA_70B, precision="bfloat16", parallelism={"tensor": 1, "pipeline": 1})
    assert refusal.value.exit_code == 3
    assert "weights and buffers need" in refusal.value.found
    assert (
        refusal.value.fix
        == "it fits 2 × h100 (parallelism.tensor: 2, parallelism.pipeline: 1), 1 × h100 in fp8 or 1 × b200 in bfloat16"
    )
    assert planned(LLAMA_70B, precision="bfloat16", parallelism={"tensor": 2, "pipeline": 1}).tp == 2


@pytest.mark.parametrize(
    ("asked", "where", "words", "fix"),
    [
        ({"tensor": 3}, "parallelism.tensor", "32 attention heads cannot be split over 3 GPUs", "use 1, 2, 4 or 8"),
        ({"tensor": 16}, "parallelism.tensor", "more than the 8 of one h100 node", "use 1, 2, 4 or 8"),
        ({"pipeline": 5}, "parallelism.pipeline", "32 layers cannot be split evenly", "use 1, 2, 4, 8, 16 or 32"),
    ],
)
def test_an_indivisible_split_is_refused_with_those_that_divide(
    asked: dict[str, int], where: str, words: str, fix: str
) -> None:
    with pytest.raises(RecipeError) as refusal:
        planned(parallelism=asked)
    assert (refusal.value.exit_code, refusal.value.where, refusal.value.fix) == (2, where, fix)
    assert words in refusal.value.found


def test_a_model_of_9_heads_is_split_over_3_gpus_and_repeats_no_kv_heads() -> None:
    assert planned(SMOLLM2, parallelism={"tensor": 3}).tp == 3
    with pytest.raises(RecipeError, match="9 attention heads"):
        planned(SMOLLM2, parallelism={"tensor": 2})


def test_kv_heads_that_neither_divide_nor_repeat_are_refused() -> None:
    odd = LLAMA_8B.model_copy(update={"heads": 24, "kv_heads": 12, "intermediate_size": 24 * 512})
    with pytest.raises(RecipeError, match="12 KV heads"):
        planned(odd, parallelism={"tensor": 8})
    assert planned(odd, parallelism={"tensor": 6}).tp == 6


def test_stages_that_do_not_fill_nodes_are_refused() -> None:
    six = LLAMA_8B.model_copy(update={"heads": 24, "kv_heads": 12, "intermediate_size": 24 * 512})
    with pytest.raises(RecipeError, match="do not fill nodes of 8 evenly"):
        planned(six, parallelism={"tensor": 6, "pipeline": 2})


def test_a_cache_too_small_for_one_sequence_is_refused_and_a_shorter_one_is_planned() -> None:
    little: dict[str, Any] = {"gpu": "a10g", "precision": "bfloat16", "kv_cache": {"free_gpu_memory_fraction": 0.05}}
    with pytest.raises(DoesNotFitError, match="fewer than one sequence of 4096") as refusal:
        planned(**little, parallelism={"tensor": 1, "pipeline": 1})
    assert "it fits 2 × a10g (parallelism.tensor: 2," in refusal.value.fix
    assert planned(**little, parallelism={"tensor": 2}).kv_tokens >= 4096
    assert planned(**little, parallelism={"tensor": 1, "pipeline": 1}, limits={"max_input_len": 300}).kv_tokens >= 1324


def test_a_model_that_fits_nowhere_says_how_much_it_needs() -> None:
    huge = LLAMA_70B.model_copy(update={"layers": 79, "hidden_size": 65536, "intermediate_size": 1 << 18})
    with pytest.raises(DoesNotFitError, match=r"GiB of each l4, which has 22\.0") as refusal:
        planned(huge, gpu="l4")
    assert "smaller `precision`" in refusal.value.fix


@pytest.mark.parametrize(
    ("limits", "where", "fix"),
    [
        ({"max_input_len": 8000}, "limits.max_input_len", "lower limits.max_input_len to 7168 or less"),
        ({"max_output_len": 9000}, "limits.max_input_len", "lower limits.max_output_len first"),
        ({"max_num_tokens": 2048}, "limits.max_num_tokens", "raise it to 3072 or more"),
        ({"max_input_len": 10, "max_num_tokens": 32}, "limits.max_num_tokens", "raise it to 64 or more"),
    ],
)
def test_limits_that_contradict_the_model_or_each_other_name_the_key(
    limits: dict[str, int], where: str, fix: str
) -> None:
    with pytest.raises(RecipeError) as refusal:
        planned(SMOLLM2, limits=limits)
    assert refusal.value.where == where
    assert fix in refusal.value.fix


def test_limits_at_the_edge_are_accepted() -> None:
    edge = {"max_input_len": 7168, "max_output_len": 1024, "max_num_tokens": 7168}
    assert planned(SMOLLM2, limits=edge).limits.max_seq_len == SMOLLM2.max_positions


def test_more_step_tokens_than_all_sequences_have_are_clamped() -> None:
    plan = planned(limits={"max_batch_size": 2, "max_input_len": 100, "max_output_len": 28})
    assert plan.limits.max_num_tokens == 2 * 128


@pytest.mark.parametrize(
    ("changes", "kv"),
    [
        ({}, "fp8"),
        ({"gpu": "l4"}, "fp8"),
        ({"precision": "bfloat16"}, "bfloat16"),
        ({"precision": "float16"}, "float16"),
        ({"gpu": "a100", "precision": "int4_awq"}, "bfloat16"),
        ({"gpu": "a100", "precision": "int8", "kv_cache": {"dtype": "int8"}}, "int8"),
        ({"precision": "bfloat16", "kv_cache": {"dtype": "fp8"}}, "fp8"),
        ({"kv_cache": {"dtype": "bfloat16"}}, "bfloat16"),
        ({"runtime": "pytorch", "precision": "bfloat16", "kv_cache": {"dtype": "fp8"}}, "fp8"),
        ({"runtime": "ctranslate2", "gpu": "cpu", "precision": "int8"}, "float32"),
    ],
)
def test_the_kv_type_follows_the_weights(changes: dict[str, Any], kv: str) -> None:
    shape = SMOLLM2 if changes.get("gpu") == "cpu" else LLAMA_8B
    limits = {"max_batch_size": 1, "max_input_len": 100, "max_output_len": 28}
    assert planned(shape, limits=limits, **changes).kv_dtype == kv


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kv_cache": {"dtype": "float16"}}, "float16 differs from the activations' bfloat16"),
        ({"kv_cache": {"dtype": "int8"}}, "int8 keys and values do not go with fp8 weights"),
        ({"precision": "int8", "kv_cache": {"dtype": "fp8"}}, "no calibrated fp8 scales"),
        (
            {"gpu": "b200", "precision": "bfloat16", "kv_cache": {"dtype": "int8"}},
            "refuses int8 keys and values on SM 100",
        ),
        ({"runtime": "pytorch", "precision": "bfloat16", "kv_cache": {"dtype": "int8"}}, "no int8 keys"),
        ({"runtime": "ctranslate2", "gpu": "cpu", "precision": "int8", "kv_cache": {"dtype": "int8"}}, "in float32"),
    ],
)
def test_a_kv_type_that_the_runtime_cannot_combine_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words) as refusal:
        planned(**changes)
    assert refusal.value.where == "kv_cache.dtype"


def test_weights_of_an_unknown_type_are_refused_and_float32_becomes_float16() -> None:
    with pytest.raises(CheckpointError, match="float64 cannot be built"):
        planned(LLAMA_8B.model_copy(update={"dtype": "float64"}), precision="int8")
    assert planned(LLAMA_8B.model_copy(update={"dtype": "float32"}), precision="int8").kv_dtype == "float16"


def test_a_cpu_plan_uses_the_hosts_memory_and_the_threads_of_the_recipe() -> None:
    plan = planned(
        SMOLLM2, gpu="cpu", runtime="ctranslate2", precision="int8", limits={"max_batch_size": 1}, serve={"threads": 3}
    )
    assert (plan.tp, plan.pp, plan.pod.cpu, plan.pod.shm_bytes) == (1, 1, 3, 256 << 20)
    assert plan.memory.visible == gpus.host_memory_bytes()
    assert plan.pod.memory_bytes == plan.memory.total + plan.pod.shm_bytes


def test_a_model_larger_than_the_host_does_not_fit() -> None:
    huge = LLAMA_70B.model_copy(update={"hidden_size": 65536, "intermediate_size": 1 << 18})
    with pytest.raises(DoesNotFitError, match="GiB of the host"):
        planned(huge, gpu="cpu", runtime="ctranslate2", precision="int8")


def test_a_pod_gets_more_cores_memory_and_shared_memory_with_more_gpus() -> None:
    one, four = (planned(parallelism={"tensor": tp}).pod for tp in (1, 4))
    assert (one.cpu, four.cpu) == (8, 20)
    assert one.shm_bytes >= (1 << 30) + 3 * (64 << 20)
    assert four.shm_bytes == one.shm_bytes + 3 * (256 << 20)
    assert one.load_seconds == 60 + math.ceil(planned().memory.weights / 125_000_000)
    assert one.drain_seconds is None


def test_a_bare_config_is_planned_from_its_shape_and_says_so(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 128256,
        "max_position_embeddings": 131072, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    record = record_checkpoint(tmp_path, source=str(tmp_path), revision="local", architecture="LlamaForCausalLM")
    assert make_plan(a_recipe(), record, tmp_path).parameters == 8_030_261_248
    assert parameters_source(record) == "config.json (computed: there are no weights here)"


def test_parameters_come_from_the_headers_where_there_are_weights(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2,
        "num_hidden_layers": 1, "vocab_size": 10, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
    }  # fmt: skip
    header = json.dumps({"a": {"dtype": "BF16", "shape": [7, 3], "data_offsets": [0, 42]}}).encode()
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(42))
    record = record_checkpoint(tmp_path, source=str(tmp_path), revision="local", architecture="LlamaForCausalLM")
    assert make_plan(a_recipe(), record, tmp_path).parameters == 21
    assert parameters_source(record) == "safetensors headers"


SIZES = st.integers(1, 1 << 24) | st.integers(1, 300)
SHAPES = st.builds(
    ModelShape,
    architecture=st.just("LlamaForCausalLM"),
    family=st.just("llama"),
    vocab_size=SIZES,
    hidden_size=SIZES,
    intermediate_size=SIZES | st.sampled_from([14336, 28672, 1536]),
    layers=st.integers(1, 4096) | st.sampled_from([32, 80]),
    heads=st.integers(1, 65536) | st.sampled_from([9, 32, 64]),
    kv_heads=st.integers(1, 65536) | st.sampled_from([3, 8]),
    head_dim=st.integers(1, 65536) | st.sampled_from([64, 128]),
    max_positions=SIZES | st.sampled_from([8192, 131072]),
    tie_embeddings=st.booleans(),
    dtype=st.sampled_from(["bfloat16", "float16", "float32", "nonsense"]),
    norm_epsilon=st.just(1e-5),
    rope_theta=st.just(1e4),
)
AUTO_OR_NUMBER = st.just("auto") | st.integers(1, 64)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    gpu = draw(st.sampled_from(sorted(gpus.catalogue())))
    facts = gpus.find(gpu)
    limits = {
        "max_batch_size": draw(st.integers(1, 4096)),
        "max_input_len": draw(st.integers(1, 10_485_760) | st.integers(1, 4096)),
        "max_output_len": draw(st.integers(1, 10_485_760) | st.integers(1, 4096)),
        "max_num_tokens": draw(st.integers(1, 1 << 20)),
    }
    split = "auto" if facts.is_cpu else draw(AUTO_OR_NUMBER)
    return a_recipe(
        gpu=gpu,
        runtime=draw(st.sampled_from(facts.runtimes)),
        precision=draw(st.sampled_from(facts.precisions)),
        limits=draw(st.just(limits) | st.just({})),
        parallelism={"tensor": split, "pipeline": "auto" if facts.is_cpu else draw(AUTO_OR_NUMBER)},
        kv_cache={
            "dtype": draw(st.sampled_from(["auto", "auto", "auto", "float16", "bfloat16", "fp8", "int8"])),
            "free_gpu_memory_fraction": draw(st.floats(0.01, 1)),
        },
    )


def holds_or_is_refused(recipe: Recipe, shape: ModelShape, parameters: int) -> bool:
    """True where there is a plan, which then keeps its promises; False for one clear refusal."""
    try:
        plan = plan_replica(recipe, shape, parameters=parameters)
    except EngineroomError as error:
        refusal = error
    else:
        check_promises(plan, shape)
        return True
    assert refusal.exit_code in (2, 3)
    assert refusal.fix
    assert "\n" not in str(refusal)
    assert len(str(refusal)) < 500
    return False


def check_promises(plan: Plan, shape: ModelShape) -> None:
    assert plan.memory.total <= plan.memory.visible
    assert plan.kv_tokens >= plan.limits.max_seq_len
    assert plan.limits.max_seq_len <= shape.max_positions
    assert shape.heads % plan.tp == 0
    assert shape.layers % plan.pp == 0 or (plan.runtime == "pytorch" and plan.pp <= shape.layers)
    assert plan.tp % plan.ep == 0
    assert Plan.parse(plan.to_json(), where="plan.json") == plan


@settings(max_examples=400, deadline=None)
@given(recipe=recipes(), shape=SHAPES, parameters=st.none() | st.integers(0, 1 << 62))
def test_any_shape_gives_a_plan_that_holds_or_one_clear_refusal(
    recipe: Recipe, shape: ModelShape, parameters: int | None
) -> None:
    holds_or_is_refused(recipe, shape, count_parameters(shape) if parameters is None else parameters)


def test_of_thousands_of_plausible_models_many_are_planned_and_the_others_clearly_refused() -> None:
    pick = random.Random(20261123)
    outcomes = []
    for _ in range(4000):
        gpu = gpus.find(pick.choice(sorted(gpus.catalogue())))
        kv_heads, head_dim = pick.choice([1, 2, 3, 4, 8, 16]), pick.choice([64, 80, 128])
        heads = kv_heads * pick.choice([1, 2, 3, 4, 8])
        shape = LLAMA_8B.model_copy(
            update={
                "vocab_size": pick.randint(1000, 300_000), "hidden_size": heads * head_dim, "heads": heads,
                "intermediate_size": pick.randint(1, 256) * 128, "layers": pick.randint(1, 128), "kv_heads": kv_heads,
                "head_dim": head_dim, "tie_embeddings": pick.random() < 0.5,
                "dtype": pick.choice(["bfloat16", "float16", "float32"]),
            }
        )  # fmt: skip
        split = {} if gpu.is_cpu or pick.random() < 0.5 else {"tensor": pick.choice([1, 2, 4, 8])}
        recipe = a_recipe(
            gpu=gpu.name, runtime=pick.choice(gpu.runtimes), precision=pick.choice(gpu.precisions), parallelism=split
        )
        outcomes.append(holds_or_is_refused(recipe, shape, count_parameters(shape)))
    assert outcomes.count(True) > 1000
    assert outcomes.count(False) > 100


@settings(max_examples=200, deadline=None)
@given(
    shape=SHAPES,
    memory=st.tuples(st.integers(1, 1 << 43), st.integers(1, 1 << 43)),
    precision=st.sampled_from(["bfloat16", "fp8", "int4_awq"]),
)
def test_more_visible_memory_never_needs_more_gpus(
    shape: ModelShape, memory: tuple[int, int], precision: gpus.Precision
) -> None:
    def gpus_needed(visible: int) -> float:
        limits = PlannedLimits(
            max_batch_size=8, max_input_len=100, max_output_len=28, max_seq_len=128, max_num_tokens=1024
        )
        load = Load(
            shape=shape, parameters=count_parameters(shape), runtime="tensorrt", precision=precision,
            kv_dtype="fp8", limits=limits, fraction=0.9, visible=visible,
        )  # fmt: skip
        try:
            split, _, _ = parallelism.choose(load, Parallelism(), gpus.find("h100"))
        except DoesNotFitError:
            return math.inf
        return split[0] * split[1]

    assert gpus_needed(max(memory)) <= gpus_needed(min(memory))


def test_shared_memory_is_planned_for_the_python_models_of_five_models() -> None:
    assert replica.PYTHON_INSTANCES >= 3
