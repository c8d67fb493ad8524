"""config.json: the shape of a model, or one sentence that names the key."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from checkpoint_samples import CONFIG
from hostile import VALUES, draws
from hypothesis import given, note, settings
from hypothesis import strategies as st

from engineroom.checkpoint.shape import ModelShape, parse_shape, read_shape
from engineroom.errors import CheckpointError

# As published with Llama 3.1 8B.
LLAMA_31 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}


def shape_of(**changes: Any) -> ModelShape:
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not ...}
    return parse_shape(config, where="config.json")


def test_llama_3_1_is_read_as_published() -> None:
    shape = parse_shape(LLAMA_31, where="")
    assert (shape.family, shape.heads, shape.kv_heads, shape.head_dim) == ("llama", 32, 8, 128)
    assert shape.rope_scaling is not None
    assert (shape.rope_scaling.kind, shape.rope_scaling.factor) == ("llama3", 8.0)
    # 2 × 32 layers × 8 KV heads × 128 × 2 bytes = 128 KiB a token, the figure commonly given for this model.
    assert shape.kv_bytes_per_token(2) == 131072


def test_what_transformers_leaves_out_has_its_default() -> None:
    shape = shape_of(num_key_value_heads=..., head_dim=None, torch_dtype=..., tie_word_embeddings=...)
    assert (shape.kv_heads, shape.head_dim, shape.dtype, shape.tie_embeddings) == (4, 4, "float32", False)
    assert shape_of(head_dim=128).head_dim == 128
    assert shape_of(rope_scaling=None).rope_scaling is None
    assert shape_of(rope_scaling={"rope_type": "default"}).rope_scaling is None


def test_the_spelling_of_transformers_5_is_read() -> None:
    new = {**LLAMA_31["rope_scaling"], "rope_theta": 500000.0}  # type: ignore[dict-item]  # the value is a mapping
    config = {key: value for key, value in LLAMA_31.items() if key not in ("rope_scaling", "rope_theta", "torch_dtype")}
    assert parse_shape(config | {"rope_parameters": new, "dtype": "bfloat16"}, where="") == parse_shape(
        LLAMA_31, where=""
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ...}, "architectures is missing"),
        ({"architectures": []}, "architectures is missing"),
        ({"architectures": [3]}, "architectures is missing"),
        ({"architectures": ["T5Model"]}, "T5Model is not a model that engineroom plans and builds"),
        ({"quantization_config": {"quant_method": "gptq"}}, "the weights are quantised already (gptq)"),
        ({"quantization_config": "awq"}, "the weights are quantised already (awq)"),
        ({"vocab_size": ...}, "vocab_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": -4}, "num_attention_heads"),
        ({"num_attention_heads": True}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 KV heads evenly"),
        ({"num_attention_heads": 32}, "head_dim"),
        ({"max_position_embeddings": 2**60}, "max_position_embeddings"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps"),
        ({"rope_theta": math.inf}, "rope_theta"),
        ({"rope_theta": [1]}, "rope_theta"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling.kind"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ({"torch_dtype": 16}, "torch_dtype"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    ],
)
def test_a_bad_config_is_one_sentence_that_names_the_key(changes: dict[str, Any], said: str) -> None:
    assert shape_of()
    with pytest.raises(CheckpointError) as refused:
        shape_of(**changes)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b'{"a": 1e999}'],
)
def test_a_file_that_is_no_config_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError) as refused:
        read_shape(tmp_path)
    assert str(tmp_path / "config.json") in refused.value.where
    assert "\n" not in str(refused.value)


def test_a_config_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="larger than 64 MiB"):
        read_shape(tmp_path)


def test_a_missing_or_unreadable_config_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read it"):
        read_shape(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match="cannot read it"):
        read_shape(tmp_path)


PUBLISHED: list[dict[str, Any]] = list(
    json.loads((Path(__file__).parent.parent / "planning" / "reference" / "configs.json").read_text()).values()
)
KEYS = [*LLAMA_31, "head_dim", "quantization_config", "rope_parameters", "dtype"]


@settings(max_examples=200, deadline=None)
@given(st.integers())
def test_any_config_has_a_shape_or_is_refused(seed: int) -> None:
    for draw in draws(seed):  # 4,000 configs
        config = dict(draw.choice([CONFIG, LLAMA_31, *PUBLISHED]))
        keys = sorted({*KEYS, *config} - {"architectures"}) if draw.random() < 0.7 else KEYS
        for key in draw.sample(keys, draw.randint(0, 3)):
            config[key] = draw.choice(VALUES)
        for key in draw.sample(KEYS, draw.choice([0, 0, 1])):
            config.pop(key, None)
        note(repr(config))
        with contextlib.suppress(CheckpointError):
            shape = parse_shape(config, where="config.json")
            assert shape.heads % shape.kv_heads == 0
            assert 0 < shape.kv_bytes_per_token(2) < 1 << 63
            assert math.isfinite(shape.norm_epsilon)
            assert math.isfinite(shape.rope_theta)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(), raw=st.binary(max_size=64))
def test_any_bytes_have_a_shape_or_are_refused(tmp_path_factory: pytest.TempPathFactory, seed: int, raw: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "hostile-config"
    folder.mkdir(exist_ok=True)
    sound = json.dumps(CONFIG).encode()
    for draw in draws(seed, 5):
        place = draw.randrange(len(sound))
        (folder / "config.json").write_bytes(sound[:place] + raw + sound[place + draw.randint(0, 4) :])
        with contextlib.suppress(CheckpointError):
            read_shape(folder)
