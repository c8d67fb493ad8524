"""``config.pbtxt`` of every model, from Triton's own protobuf type: what is written here, Triton can read.

No template is filled. A template with an unset ``${name}`` is refused by Triton in a typed field and taken for a
literal value in some of the others (triton-inference-server/server issue 8592); here an option that is not set is
not there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engineroom.engines.engine import Engine
from engineroom.gpus import Runtime
from engineroom.planning.plan import Plan
from engineroom.recipe import Recipe
from engineroom.repository.record import ENGINE, MOUNT
from engineroom.repository.tensors import Interface, Tensor, tensors

#: The model that generates, in every layout.
CORE = "tensorrt_llm"
BLS = "tensorrt_llm_bls"

#: Modules beside the one model's ``model.py``.
_ENGINE_MODULES = {"ctranslate2": "ctranslate2_engine", "pytorch": "llmapi_engine"}

#: Streams that one process of ``tensorrt_llm_bls`` keeps up with: such a process hands on about 2,000 tokens/s
#: (measured, two models joined by BLS), and an answer runs at some 100 tokens/s at most on a GPU.
_STREAMS_PER_BLS = 16
_MOST_BLS = 8


@dataclass(frozen=True)
class Facts:
    """What the configurations are made from."""

    recipe: Recipe
    plan: Plan
    engine: Engine
    end_ids: list[int]
    """Token ids that end an answer."""


def client_model(runtime: Runtime) -> str:
    """The model that clients call."""
    return BLS if runtime == "tensorrt" else CORE


def configs(facts: Facts) -> dict[str, Any]:
    """Name of each model of the layout → its ``ModelConfig``."""
    if facts.plan.runtime != "tensorrt":
        made = [_one_model(facts)]
    else:
        made = [_preprocessing(facts), _cpp_core(facts), _postprocessing(facts), _ensemble(), _bls(facts)]
    return {config.name: config for config in made}


def to_text(config: Any) -> str:
    """``config`` as protobuf text: equal configurations give equal text."""
    from google.protobuf import text_format

    text: str = text_format.MessageToString(config)
    return text


def from_text(text: str) -> Any:
    """The ``ModelConfig`` in ``text``; strict, like Triton. Raises google.protobuf.text_format.ParseError."""
    from google.protobuf import text_format

    from engineroom.protocol import messages

    return text_format.Parse(text, messages.ModelConfig())


def _one_model(facts: Facts) -> Any:
    plan, recipe = facts.plan, facts.recipe
    config = _python(CORE, "client_pytorch" if plan.runtime == "pytorch" else "client", decoupled=True)
    parameters: dict[str, object] = _text_parameters(facts) | {
        "engine": _ENGINE_MODULES[plan.runtime],
        "max_batch_size": plan.limits.max_batch_size,
        "max_queue_size": recipe.serve.max_queue_size,
        "max_num_tokens": plan.limits.max_num_tokens,
        "kv_tokens": plan.kv_tokens,
    }
    if recipe.serve.threads:
        parameters["threads"] = recipe.serve.threads
    if plan.runtime == "pytorch":
        parameters |= {
            "tensor_parallel_size": plan.tp,
            "pipeline_parallel_size": plan.pp,
            **({"moe_expert_parallel_size": plan.ep} if plan.ep > 1 else {}),
            "kv_dtype": plan.kv_dtype,
            "kv_cache_free_gpu_mem_fraction": recipe.kv_cache.free_gpu_memory_fraction,
        }
    return _with_parameters(config, parameters)


def _bls(facts: Facts) -> Any:
    limits = facts.plan.limits
    instances = min(_MOST_BLS, -(-limits.max_batch_size // _STREAMS_PER_BLS))
    config = _python(BLS, "client_tensorrt", decoupled=True, instances=instances)
    return _with_parameters(
        config,
        _text_parameters(facts)
        | {"tensorrt_llm_model_name": CORE, "max_streams": limits.max_batch_size + facts.recipe.serve.max_queue_size},
    )


def _preprocessing(facts: Facts) -> Any:
    return _with_parameters(_python("preprocessing", "preprocessing"), _text_parameters(facts))


def _postprocessing(facts: Facts) -> Any:
    return _with_parameters(_python("postprocessing", "postprocessing"), {"end_ids": json.dumps(facts.end_ids)})


def _cpp_core(facts: Facts) -> Any:
    """The C++ backend's model. Parameters that are left out have the backend's defaults."""
    plan, recipe = facts.plan, facts.recipe
    config = _model(CORE, "tensorrt_llm_cpp", batch=plan.limits.max_batch_size)
    config.backend = "tensorrtllm"
    config.model_transaction_policy.decoupled = True
    config.dynamic_batching.preferred_batch_size.append(plan.limits.max_batch_size)
    config.dynamic_batching.default_queue_policy.max_queue_size = recipe.serve.max_queue_size
    paged_context = facts.engine.inputs.plugins.get("use_paged_context_fmha", "enable") == "enable"
    return _with_parameters(
        config,
        {
            # Which GPUs are used is up to MPI; KIND_GPU would be wrong here (tensorrtllm_backend issues 576, 577).
            "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
            "gpt_model_type": "inflight_fused_batching",
            "gpt_model_path": f"{MOUNT}/{ENGINE}",
            "batch_scheduler_policy": "guaranteed_no_evict",
            "max_beam_width": 1,
            # Without it every answer would begin with its prompt.
            "exclude_input_in_output": True,
            "kv_cache_free_gpu_mem_fraction": recipe.kv_cache.free_gpu_memory_fraction,
            # Both need an engine with paged context attention. Chunked context lets prompts be longer than
            # max_num_tokens; without it they are refused (TensorRT-LLM issues 2702, 2717).
            "enable_kv_cache_reuse": paged_context,
            "enable_chunked_context": paged_context,
            "executor_worker_path": "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker",
        },
    )


def _ensemble() -> Any:
    """Whole answers without BLS. It has no ``stream``: a step keeps no state from one token to the next.

    Its stop words are the engine's: compared as token ids, and left at the end of the text. To cut them off,
    postprocessing would have to be given them beside the tokens, but Triton refuses a step "that receives inputs
    originated from different decoupled models" (2.51; server issue 7275). ``tensorrt_llm_bls`` cuts exactly.
    """
    config = _model("ensemble", "ensemble", batch=1)
    config.platform = "ensemble"
    steps = config.ensemble_scheduling.step
    _step(
        steps.add(),
        "preprocessing",
        {
            "QUERY": "text_input",
            "REQUEST_OUTPUT_LEN": "max_tokens",
            "BAD_WORDS_DICT": "bad_words",
            "STOP_WORDS_DICT": "stop_words",
            "ADD_SPECIAL_TOKENS": "add_special_tokens",
        },
        {
            "INPUT_ID": "_input_id",
            "REQUEST_INPUT_LEN": "_request_input_len",
            "REQUEST_OUTPUT_LEN": "_request_output_len",
            "BAD_WORDS_IDS": "_bad_words_ids",
            "STOP_WORDS_IDS": "_stop_words_ids",
            "OUT_END_ID": "_end_id",
        },
    )
    _step(
        steps.add(),
        CORE,
        {
            "input_ids": "_input_id",
            "input_lengths": "_request_input_len",
            "request_output_len": "_request_output_len",
            "bad_words_list": "_bad_words_ids",
            "stop_words_list": "_stop_words_ids",
            "end_id": "_end_id",
            "runtime_top_k": "top_k",
            "runtime_top_p": "top_p",
            "temperature": "temperature",
            "repetition_penalty": "repetition_penalty",
            "presence_penalty": "presence_penalty",
            "frequency_penalty": "frequency_penalty",
            "min_tokens": "min_tokens",
            "seed": "seed",
        },
        {"output_ids": "_tokens_batch", "sequence_length": "_sequence_length"},
    )
    _step(
        steps.add(),
        "postprocessing",
        {"TOKENS_BATCH": "_tokens_batch", "SEQUENCE_LENGTH": "_sequence_length"},
        {"OUTPUT": "text_output"},
    )
    return config


def declare(config: Any, interface: Interface) -> None:
    """Give ``config`` the inputs and outputs of ``interface`` in place of those that it has."""
    config.ClearField("input")
    config.ClearField("output")
    declared = tensors(interface)
    for tensor in declared.inputs:
        _declare(config.input.add(), tensor)
    for tensor in declared.outputs:
        _declare(config.output.add(), tensor)


def _text_parameters(facts: Facts) -> dict[str, object]:
    """What every model that takes text has to know."""
    limits = facts.plan.limits
    return {
        "max_input_len": limits.max_input_len,
        "max_seq_len": limits.max_seq_len,
        "end_ids": json.dumps(facts.end_ids),
    }


def _python(name: str, interface: Interface, *, decoupled: bool = False, instances: int = 1) -> Any:
    config = _model(name, interface, batch=1, instances=instances)
    config.backend = "python"
    if decoupled:
        config.model_transaction_policy.decoupled = True
    return config


def _model(name: str, interface: Interface, *, batch: int, instances: int = 1) -> Any:
    from engineroom.protocol import messages

    config = messages.ModelConfig(name=name, max_batch_size=batch)
    declare(config, interface)
    if interface != "ensemble":
        # On a machine without GPU Triton refuses its default, KIND_AUTO.
        config.instance_group.add(count=instances, kind=messages.ModelInstanceGroup.KIND_CPU)
    return config


def _declare(field: Any, tensor: Tensor) -> None:
    from engineroom.protocol import messages

    field.name = tensor.name
    field.data_type = getattr(messages, f"TYPE_{tensor.datatype}")
    field.dims.extend(tensor.dims)
    if tensor.scalar:
        field.reshape.SetInParent()
    if tensor.ragged:
        field.allow_ragged_batch = True
    if tensor.optional:
        field.optional = True


def _step(step: Any, model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    step.model_name = model
    step.model_version = -1
    step.input_map.update(inputs)
    step.output_map.update(outputs)


def _with_parameters(config: Any, parameters: Mapping[str, object]) -> Any:
    for name, value in parameters.items():
        config.parameters[name].string_value = str(value).lower() if isinstance(value, bool) else str(value)
    return config
