"""Flags of old guides are answered with today's recipe key or flag."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.engines.retired_flags import RETIRED, explain, refuse
from engineroom.engines.tensorrt_commands import flag_table
from engineroom.errors import InputError

OLD_GUIDE = shlex.split(
    "build.py --model_dir ./llama --dtype float16 --use_gpt_attention_plugin float16 --use_gemms_plugin float16"
    " --remove_input_padding --use_paged_kv_cache --use_inflight_batching --enable_context_fmha"
    " --max_batch_size 64 --max_input_len 2048 --max_output_len 512 --world_size 2 --tp_size 2 --output_dir ./engine"
)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("build.py", "set `model.source` in the recipe"),
        ("--model_dir", "set `model.source` in the recipe"),
        ("--use_gpt_attention_plugin", "engineroom writes --gpt_attention_plugin auto"),
        ("--use_gemm_plugin", "engineroom writes --gemm_plugin auto"),
        ("--use_gemms_plugin", "engineroom writes --gemm_plugin auto"),
        ("--use_paged_kv_cache", "engineroom writes --kv_cache_type paged"),
        ("--paged_kv_cache", "engineroom writes --kv_cache_type paged"),
        ("--max_output_len", "set `limits.max_output_len` in the recipe (today: --max_seq_len"),
        ("--remove_input_padding", "engineroom writes --remove_input_padding enable"),
        ("--use_inflight_batching", "batching_strategy:inflight_fused_batching"),
        ("--enable_context_fmha", "engineroom writes --context_fmha enable"),
        ("--world_size", "set `parallelism` in the recipe"),
        ("--tp_size", "set `parallelism.tensor` in the recipe"),
        ("--pp_size", "set `parallelism.pipeline` in the recipe"),
        ("--streamingllm", "leave it out"),
        ("--strongly_typed", "leave it out"),
        ("--use_weight_only", "set `precision: int8 or int4` in the recipe"),
        ("--weight_only_precision", "set `precision: int8 or int4` in the recipe"),
        ("--gemm_plugin", "set `precision` in the recipe"),
        ("--max_batch_size", "set `limits.max_batch_size` in the recipe"),
        ("--context_fmha", "leave it out"),
    ],
)
def test_a_spelling_of_an_old_guide_is_answered_with_todays(argument: str, words: str) -> None:
    with pytest.raises(InputError) as refusal:
        refuse([argument])
    assert refusal.value.where == argument
    assert words in refusal.value.fix
    assert refusal.value.exit_code == 2


def test_a_number_goes_into_the_answer() -> None:
    for args in (["--max_output_len", "512"], ["--max_output_len=512"], ["--max-output-len", "512"]):
        (answer,) = explain(args)
        assert "`limits.max_output_len: 512`" in answer.fix
    (answer,) = explain(["--tp_size", "4"])
    assert "`parallelism.tensor: 4`" in answer.fix


def test_a_whole_command_of_an_old_guide_is_explained_flag_by_flag() -> None:
    answers = explain(OLD_GUIDE)
    assert [answer.argument for answer in answers] == [
        word for word in OLD_GUIDE if word.startswith("--") or word == "build.py"
    ]
    assert all(answer.found and answer.fix and answer.source for answer in answers)


def test_one_sentence_for_a_whole_command_names_its_first_flag() -> None:
    with pytest.raises(InputError) as refusal:
        refuse(OLD_GUIDE[1:])
    assert refusal.value.where == "--model_dir"
    assert "\n" not in str(refusal.value)


def test_a_path_to_the_old_script_is_recognised() -> None:
    assert [answer.argument for answer in explain(["examples/llama/build.py"])] == ["examples/llama/build.py"]


def test_a_misspelt_flag_gets_a_guess_and_a_strange_one_does_not() -> None:
    with pytest.raises(InputError, match="unknown argument") as near:
        refuse(["--use_gpt_atention_plugin"])
    assert "did you mean --use_gpt_attention_plugin?" in near.value.fix
    with pytest.raises(InputError, match="unknown argument") as far:
        refuse(["--frobnicate"])
    assert "did you mean" not in far.value.fix


def test_no_arguments_are_no_error() -> None:
    refuse([])
    assert explain([]) == []


def test_every_answer_has_a_source_and_names_no_flag_that_is_retired_itself() -> None:
    todays = {flag for flags in flag_table().values() for flag in flags}
    for name, old in RETIRED.items():
        assert old.source, name
        for word in old.today.replace("(", " ").split():
            if word.startswith("--") and "smoothquant" not in word:
                assert word.rstrip(",") in todays, (name, word)


@given(st.lists(st.text(max_size=30) | st.sampled_from(OLD_GUIDE), max_size=8))
def test_any_arguments_are_answered_or_refused_in_one_sentence(args: list[str]) -> None:
    assert len(explain(args)) <= len(args)
    if args:
        with pytest.raises(InputError) as refusal:
            refuse(args)
        assert str(refusal.value).isprintable()
