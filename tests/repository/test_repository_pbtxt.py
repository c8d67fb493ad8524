"""Configurations: strict protobuf, NVIDIA's names and types, one contract for clients of every runtime."""

import csv
import os
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from engineroom.gpus import Runtime
from engineroom.repository import pbtxt
from engineroom.repository.tensors import RENAMED, tensors

RUNTIMES: list[Runtime] = ["ctranslate2", "pytorch", "tensorrt"]

#: Name → type and dims, from the v0.19.0 templates: what clients and the ensemble's maps rely on.
KNOWN = {
    "text_input": ("STRING", (1,)),
    "max_tokens": ("INT32", (1,)),
    "stop_words": ("STRING", (-1,)),
    "bad_words": ("STRING", (-1,)),
    "temperature": ("FP32", (1,)),
    "top_k": ("INT32", (1,)),
    "top_p": ("FP32", (1,)),
    "repetition_penalty": ("FP32", (1,)),
    "presence_penalty": ("FP32", (1,)),
    "frequency_penalty": ("FP32", (1,)),
    "min_tokens": ("INT32", (1,)),
    "seed": ("UINT64", (1,)),
    "end_id": ("INT32", (1,)),
    "stream": ("BOOL", (1,)),
    "exclude_input_in_output": ("BOOL", (1,)),
    "text_output": ("STRING", (-1,)),
    "INPUT_ID": ("INT32", (-1,)),
    "REQUEST_INPUT_LEN": ("INT32", (1,)),
    "STOP_WORDS_IDS": ("INT32", (2, -1)),
    "TOKENS_BATCH": ("INT32", (-1, -1)),
    "SEQUENCE_LENGTH": ("INT32", (-1,)),
    "OUTPUT": ("STRING", (-1,)),
    "input_ids": ("INT32", (-1,)),
    "output_ids": ("INT32", (-1, -1)),
    "stop_words_list": ("INT32", (2, -1)),
    "streaming": ("BOOL", (1,)),
    "stop": ("BOOL", (1,)),
    "return_finish_reason": ("BOOL", (1,)),
    "return_log_probs": ("BOOL", (1,)),
    "output_log_probs": ("FP32", (-1, -1)),
}


def configs(make_inputs: Any, runtime: Runtime, **changes: Any) -> dict[str, Any]:
    made = make_inputs(runtime, **changes)
    found: dict[str, Any] = pbtxt.configs(pbtxt.Facts(made.recipe, made.plan, made.engine, [0, 5]))
    return found


def kind_of(tensor: Any) -> tuple[str, tuple[int, ...]]:
    from tritonclient.grpc import model_config_pb2

    return model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_"), tuple(tensor.dims)


def declared(config: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {tensor.name: kind_of(tensor) for tensor in [*config.input, *config.output]}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_configuration_reads_back_as_it_was(make_inputs: Any, runtime: Runtime) -> None:
    for name, config in configs(make_inputs, runtime).items():
        text = pbtxt.to_text(config)

        assert pbtxt.from_text(text) == config
        assert config.name == name
        assert "$" not in text


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(text_format.ParseError):
        pbtxt.from_text("name: 'a' max_bach_size: 1")

    assert pbtxt.from_text("name: 'a' max_batch_size: 1").max_batch_size == 1


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_tensors_have_the_types_that_clients_know(make_inputs: Any, runtime: Runtime) -> None:
    for config in configs(make_inputs, runtime).values():
        for tensor in [*config.input, *config.output]:
            if tensor.name in KNOWN:
                assert kind_of(tensor) == KNOWN[tensor.name], f"{config.name}: {tensor.name}"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_tensors_equal_nvidias_wherever_they_share_a_name(make_inputs: Any, runtime: Runtime) -> None:
    folder = os.environ.get("ENGINEROOM_REFERENCE_DATA")
    if not folder:
        pytest.skip("ENGINEROOM_REFERENCE_DATA does not name the folder with triton_tensors_v0.19.csv")
    with Path(folder, "triton_tensors_v0.19.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    compared = 0
    for config in configs(make_inputs, runtime).values():
        # The one Python model has the core's name and the BLS model's tensors.
        theirs = "tensorrt_llm_bls" if runtime != "tensorrt" else config.name
        ours = {(kind, tensor.name): tensor for kind in ("input", "output") for tensor in getattr(config, kind)}
        for row in rows:
            for name in {row["name"], *(new for new, old in RENAMED.items() if old == row["name"])}:
                tensor = ours.get((row["direction"], name))
                if row["model"] != theirs or tensor is None:
                    continue
                datatype = {"${logits_datatype}": "FP32", "${encoder_input_features_data_type}": "FP16"}
                assert kind_of(tensor) == (
                    datatype.get(row["datatype"], row["datatype"]),
                    tuple(int(size) for size in row["dims"].split()),
                ), f"{config.name}: {name}"
                if row["direction"] == "input":
                    assert tensor.optional == (row["optional"] == "1"), f"{config.name}: {name}"
                compared += 1
    assert compared >= (12 if runtime != "tensorrt" else 100)


def test_the_cpp_backends_model_has_all_of_its_tensors_by_their_new_names(make_inputs: Any) -> None:
    core = configs(make_inputs, "tensorrt")["tensorrt_llm"]

    assert len(core.input) == 60 + 2
    assert len(core.output) == 19 + 2
    assert not {*RENAMED.values()} & {tensor.name for tensor in core.input}
    assert {*RENAMED} <= {tensor.name for tensor in core.input}
    assert {tensor.name for tensor in core.input if not tensor.optional} == {"input_lengths", "request_output_len"}


def test_clients_find_the_same_tensors_and_shapes_in_every_runtime(make_inputs: Any) -> None:
    clients = [configs(make_inputs, runtime)[pbtxt.client_model(runtime)] for runtime in RUNTIMES]
    one, two, bls = (declared(client) for client in clients)

    assert one.items() <= two.items()
    assert two.keys() - one.keys() == {"top_log_probs", "top_ids"}
    assert one.items() <= bls.items()
    assert bls.keys() - one.keys() == {"bad_words", "presence_penalty", "frequency_penalty"}
    assert {client.max_batch_size for client in clients} == {1}
    assert all(client.model_transaction_policy.decoupled for client in clients)
    required = [{tensor.name for tensor in client.input if not tensor.optional} for client in clients]
    assert required == [{"text_input", "max_tokens"}] * 3


def test_the_tensorrt_layout_is_nvidias_five_models(make_inputs: Any) -> None:
    made = configs(make_inputs, "tensorrt")

    assert {name: config.backend or config.platform for name, config in made.items()} == {
        "preprocessing": "python",
        "tensorrt_llm": "tensorrtllm",
        "postprocessing": "python",
        "ensemble": "ensemble",
        "tensorrt_llm_bls": "python",
    }
    assert made["tensorrt_llm_bls"].instance_group[0].count == 3  # 40 streams, 16 a process
    assert made["tensorrt_llm"].dynamic_batching.preferred_batch_size == [40]


def test_the_ensemble_maps_only_tensors_that_its_steps_have(make_inputs: Any) -> None:
    made = configs(make_inputs, "tensorrt")
    ensemble = made["ensemble"]
    known = {tensor.name for tensor in ensemble.input}

    for step in ensemble.ensemble_scheduling.step:
        model = made[step.model_name]
        assert set(step.input_map) <= {tensor.name for tensor in model.input}
        assert set(step.output_map) <= {tensor.name for tensor in model.output}
        assert {tensor.name for tensor in model.input if not tensor.optional} <= set(step.input_map)
        assert set(step.input_map.values()) <= known
        known |= set(step.output_map.values())
    assert {tensor.name for tensor in ensemble.output} <= known
    assert {tensor.name for tensor in ensemble.input} <= {
        name for step in ensemble.ensemble_scheduling.step for name in step.input_map.values()
    }


def test_parameters_of_the_cpp_backend(make_inputs: Any) -> None:
    core = configs(make_inputs, "tensorrt", kv_cache={"free_gpu_memory_fraction": 0.85})["tensorrt_llm"]
    parameters = {name: value.string_value for name, value in core.parameters.items()}

    assert parameters["gpt_model_path"] == "/models/engine"
    assert parameters["gpt_model_type"] == "inflight_fused_batching"
    assert parameters["kv_cache_free_gpu_mem_fraction"] == "0.85"
    assert parameters["exclude_input_in_output"] == "true"
    assert parameters["enable_kv_cache_reuse"] == parameters["enable_chunked_context"] == "true"
    assert not [name for name, value in parameters.items() if value in ("", "None")]


def test_reuse_and_chunked_context_are_off_where_the_engine_has_no_paged_context_attention(make_inputs: Any) -> None:
    made = make_inputs("tensorrt")
    plugins = {"use_paged_context_fmha": "disable"}
    engine = made.engine.model_copy(update={"inputs": made.engine.inputs.model_copy(update={"plugins": plugins})})
    core = pbtxt.configs(pbtxt.Facts(made.recipe, made.plan, engine, [0]))["tensorrt_llm"]

    assert core.parameters["enable_kv_cache_reuse"].string_value == "false"
    assert core.parameters["enable_chunked_context"].string_value == "false"


def test_an_option_that_is_not_set_is_left_out(make_inputs: Any) -> None:
    without = configs(make_inputs, "ctranslate2")["tensorrt_llm"]
    with_threads = configs(make_inputs, "ctranslate2", serve={"threads": 3})["tensorrt_llm"]

    assert "threads" not in without.parameters
    assert with_threads.parameters["threads"].string_value == "3"
    assert without.parameters["end_ids"].string_value == "[0, 5]"
    assert without.parameters["engine"].string_value == "ctranslate2_engine"


def test_each_tensor_stands_in_the_file_once() -> None:
    for interface in ("client", "client_tensorrt", "preprocessing", "postprocessing", "ensemble", "tensorrt_llm_cpp"):
        for side in (tensors(interface).inputs, tensors(interface).outputs):
            names = [tensor.name for tensor in side]
            assert names
            assert len(set(names)) == len(names)
