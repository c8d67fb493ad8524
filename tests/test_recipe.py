"""The recipe: every refusal names its key, stands beside its nearest legal neighbour, and is never a traceback."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engineroom import gpus, recipe
from engineroom.errors import RecipeError
from engineroom.recipe import Recipe

BASE: dict[str, Any] = {
    "model": {"source": "demo://smollm2"},
    "gpu": "h100",
    "runtime": "tensorrt",
    "precision": "fp8",
}


def read(changes: dict[str, Any]) -> Recipe:
    return recipe.parse(yaml.safe_dump(BASE | changes), where="r.yaml")


@pytest.mark.parametrize(
    ("bad", "key", "words", "good"),
    [
        ({"limits": {"max_batch_sze": 3}}, "limits.max_batch_sze", "max_batch_size", {"limits": {"max_batch_size": 3}}),
        (
            {"limits": {"max_batch_size": "3"}},
            "limits.max_batch_size",
            "whole number",
            {"limits": {"max_batch_size": 3}},
        ),
        ({"limits": {"max_batch_size": 0}}, "limits.max_batch_size", "found 0", {"limits": {"max_batch_size": 1}}),
        ({"limits": {"max_batch_size": 4097}}, "limits.max_batch_size", "4096", {"limits": {"max_batch_size": 4096}}),
        ({"limits": 3}, "limits", "mapping of keys", {"limits": {}}),
        ({"gpu": "h10"}, "gpu", "did you mean h100", {"gpu": "h100"}),
        ({"gpu": "t4"}, "gpu", "0.14", {"gpu": "l4"}),
        ({"gpu": "v100"}, "gpu", "0.15", {"gpu": "a10g", "precision": "int8"}),
        ({"gpu": "cpu"}, "runtime", "ctranslate2", {"gpu": "cpu", "runtime": "ctranslate2", "precision": "int8"}),
        ({"gpu": "a100"}, "precision", "has no fp8", {"gpu": "a100", "precision": "bfloat16"}),
        ({"parallelism": {"tensor": 0}}, "parallelism.tensor", "found 0", {"parallelism": {"tensor": 1}}),
        ({"parallelism": {"tensor": "all"}}, "parallelism.tensor", "auto", {"parallelism": {"tensor": "auto"}}),
        ({"schema": 2}, "schema", "found 2", {"schema": 1}),
        ({"model": {"source": ""}}, "model.source", "at least 1", {"model": {"source": "x"}}),
        ({"serve": {"max_queue_size": True}}, "serve.max_queue_size", "whole number", {"serve": {"max_queue_size": 1}}),
        (
            {"traffic": {"requests_per_second": float("inf"), "input_tokens": 1, "output_tokens": 1}},
            "traffic.requests_per_second",
            "found inf",
            {"traffic": {"requests_per_second": 5, "input_tokens": 1, "output_tokens": 1}},
        ),
        (
            {"slo": {"ttft_ms": float("nan"), "itl_ms": 1}},
            "slo.ttft_ms",
            "found nan",
            {"slo": {"ttft_ms": 0.5, "itl_ms": 1}},
        ),
    ],
)
def test_a_bad_key_is_named_with_the_fix_and_its_legal_neighbour_is_taken(
    bad: dict[str, Any], key: str, words: str, good: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError) as refusal:
        read(bad)

    assert refusal.value.where == f"r.yaml: {key}"
    assert words in f"{refusal.value.found}; {refusal.value.fix}"
    read(good)


def test_the_class_cpu_has_no_gpus_to_split_a_model_over() -> None:
    on_cpu = {"gpu": "cpu", "runtime": "ctranslate2", "precision": "int8"}

    with pytest.raises(RecipeError, match="no GPUs"):
        read(on_cpu | {"parallelism": {"tensor": 2}})

    assert read(on_cpu | {"parallelism": {"tensor": 1}}).parallelism.tensor == 1


def test_a_key_that_stands_there_twice_is_refused() -> None:
    text = yaml.safe_dump(BASE)

    with pytest.raises(RecipeError, match="twice"):
        recipe.parse(text + "gpu: h200\n", where="r.yaml")

    assert recipe.parse(text, where="r.yaml").gpu == "h100"


@pytest.mark.parametrize(
    "text", ["? [a]\n: b\n", "? {a: b}\n: c\n", "gpu: !!int x\n", "[" * 5000, "a: &a [*a]", "a: \0", "<<: 3\n"]
)
def test_hostile_yaml_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        recipe.parse(text, where="r.yaml")

    assert "\n" not in str(refusal.value)


def test_a_date_is_text_and_a_number_is_not() -> None:
    def revision(spelled: str) -> Recipe:
        text = yaml.safe_dump({key: value for key, value in BASE.items() if key != "model"})
        return recipe.parse(f"{text}model: {{source: x, revision: {spelled}}}\n", where="r.yaml")

    assert revision("2024-12-01").model.revision == "2024-12-01"
    with pytest.raises(RecipeError, match="should be text"):
        revision("1.0")
    assert revision("'1.0'").model.revision == "1.0"


def test_a_file_that_is_no_recipe_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"#" * recipe.MOST_BYTES)
    with pytest.raises(RecipeError, match="mapping of keys"):
        recipe.load(path)

    path.write_bytes(b"#" * (recipe.MOST_BYTES + 1))
    with pytest.raises(RecipeError, match="it is no recipe"):
        recipe.load(path)


def test_a_checkpoint_is_looked_for_beside_its_recipe_but_not_beside_a_flag(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    (tmp_path / "model").mkdir()
    for source, found in (
        ("model", str(tmp_path / "model")),
        ("elsewhere", "elsewhere"),
        ("demo://smollm2", "demo://smollm2"),
        ("x" * 1000, "x" * 1000),
    ):
        path.write_text(yaml.safe_dump(BASE | {"model": {"source": source}}))
        assert recipe.load(path).model.source == found
    assert recipe.load(path, {"model.source": "model"}).model.source == "model"


def test_flags_override_keys_before_the_recipe_is_checked() -> None:
    text = yaml.safe_dump(BASE)

    made = recipe.parse(text, where="r.yaml", overrides={"gpu": "h200", "limits.max_batch_size": 7})
    assert (made.gpu, made.limits.max_batch_size) == ("h200", 7)

    with pytest.raises(RecipeError, match="did you mean h200"):
        recipe.parse(text, where="r.yaml", overrides={"gpu": "h20"})


def test_max_seq_len_is_prompt_and_answer() -> None:
    made = read({"limits": {"max_input_len": 100, "max_output_len": 28}})

    assert made.limits.max_seq_len == 128


KEYS = st.sampled_from(
    [
        "model",
        "gpu",
        "runtime",
        "precision",
        "limits",
        "kv_cache",
        "parallelism",
        "traffic",
        "slo",
        "publish",
        "serve",
        "source",
        "max_batch_size",
        "tensor",
        "dtype",
        "schema",
        "nonsense",
    ]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(list(gpus.catalogue()))
)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@given(changes=st.dictionaries(KEYS, TREES, max_size=5), dropped=st.sets(st.sampled_from(list(BASE)), max_size=2))
def test_any_mapping_is_a_recipe_or_refused(changes: dict[str, Any], dropped: set[str]) -> None:
    data = {key: value for key, value in (BASE | changes).items() if key not in dropped}
    try:
        made = recipe.parse(yaml.safe_dump(data), where="r.yaml")
    except RecipeError as refusal:
        assert refusal.where.startswith("r.yaml")
    else:
        assert Recipe.parse(made.to_json(), where="again") == made


@given(
    text=st.text(alphabet=st.characters(codec="utf-8"), max_size=200) | st.from_regex(r"[-\[\]{}:,&*!|>'\"%@`#? a0\n]*")
)
def test_any_text_is_a_recipe_or_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        recipe.parse(text, where="r.yaml")
