"""The recipe, ``engineroom.yaml``: what to serve, on what, and for which traffic.

Strict: an unknown key, a wrong type or an impossible limit is refused with its key path. A flag of the
command line overrides its key before the recipe is checked, so both are refused in the same words.
"""

import os
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from engineroom import gpus
from engineroom.documents import Document, Strict, first_problem
from engineroom.errors import InputError, RecipeError
from engineroom.gpus import Precision, Runtime

DEFAULT_PATH = Path("engineroom.yaml")

#: A recipe takes some KB; a longer file is something else, such as weights.
MOST_BYTES = 1 << 20

#: No model in the field takes more; a larger number is a typo (Llama 4 Scout: 10 million tokens).
MOST_TOKENS = 10_485_760


class Model(Strict):
    """Where the checkpoint comes from."""

    source: str = Field(min_length=1, description="hf://org/name, demo://smollm2, or the path of a local checkpoint")
    revision: str | None = Field(default=None, min_length=1, description="branch, tag or commit on the Hub")


class KvCache(Strict):
    """The paged KV cache."""

    dtype: Literal["auto", "float16", "bfloat16", "fp8", "int8"] = Field(
        default="auto", description="auto: fp8 with fp8 weights where the runtime has it, else the activations' type"
    )
    free_gpu_memory_fraction: float = Field(
        default=0.9, gt=0, le=1, description="share of the memory left after weights and buffers that the cache takes"
    )


class Parallelism(Strict):
    """How many GPUs one replica spans: tensor × pipeline."""

    tensor: Literal["auto"] | int = Field(default="auto", description="ranks that split each layer")
    pipeline: Literal["auto"] | int = Field(default="auto", description="ranks that split the layers among them")

    @field_validator("tensor", "pipeline")
    @classmethod
    def _power_of_two(cls, value: Literal["auto"] | int) -> Literal["auto"] | int:
        if isinstance(value, int) and not 1 <= value <= 64:
            raise ValueError("it should be auto or a whole number from 1 to 64")
        return value


class Limits(Strict):
    """What one replica accepts. ``max_seq_len = max_input_len + max_output_len``."""

    max_batch_size: int = Field(default=64, ge=1, le=4096, description="requests that generate at the same time")
    max_input_len: int = Field(default=3072, ge=1, le=MOST_TOKENS, description="tokens of a prompt")
    max_output_len: int = Field(default=1024, ge=1, le=MOST_TOKENS, description="tokens of an answer")
    max_num_tokens: int = Field(default=8192, ge=1, le=1 << 20, description="packed tokens in one engine step")

    @property
    def max_seq_len(self) -> int:
        """Prompt and answer together, tokens."""
        return self.max_input_len + self.max_output_len


class Traffic(Strict):
    """What is expected to arrive."""

    requests_per_second: float = Field(gt=0, le=1e6)
    input_tokens: int = Field(ge=1, le=MOST_TOKENS, description="mean prompt length")
    output_tokens: int = Field(ge=1, le=MOST_TOKENS, description="mean answer length")


class Slo(Strict):
    """What is promised, at the 95th percentile."""

    ttft_ms: float = Field(gt=0, description="time to first token, milliseconds")
    itl_ms: float = Field(gt=0, description="inter-token latency, milliseconds")


class Publish(Strict):
    """Where the artifact goes."""

    to: str = Field(min_length=1, description="SCHEME://LOCATION/NAME[:TAG], such as s3://bucket/models/llama:v1")


class Serve(Strict):
    """How one server is run."""

    threads: int = Field(default=0, ge=0, le=1024, description="CPU threads of the engine; 0: all that there are")
    max_queue_size: int = Field(
        default=256, ge=1, le=1_000_000, description="requests that may wait; one more is refused at once"
    )


class Recipe(Document):
    """The whole recipe. Sections that are left out take their defaults."""

    model: Model
    gpu: str = Field(description="a GPU class: `engineroom gpus` lists them")
    runtime: Runtime = Field(description="tensorrt, pytorch or ctranslate2; `engineroom init` picks the one that suits")
    precision: Precision = Field(description="of the weights")
    kv_cache: KvCache = KvCache()
    parallelism: Parallelism = Parallelism()
    limits: Limits = Limits()
    traffic: Traffic | None = None
    slo: Slo | None = None
    publish: Publish | None = None
    serve: Serve = Serve()

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        try:
            gpu = gpus.find(self.gpu, where="gpu")
        except InputError as error:
            raise _refusal("gpu", error.found, error.fix) from None
        if self.runtime not in gpu.runtimes:
            raise _refusal("runtime", f"{self.runtime} does not run on {gpu.name}", f"use {' or '.join(gpu.runtimes)}")
        if self.precision not in gpu.precisions:
            has = ", ".join(gpu.precisions)
            raise _refusal("precision", f"{gpu.name} has no {self.precision} with {self.runtime}", f"use one of {has}")
        if gpu.is_cpu and (self.parallelism.tensor not in ("auto", 1) or self.parallelism.pipeline not in ("auto", 1)):
            raise _refusal("parallelism", "the class cpu has no GPUs to split a model over", "leave it out")
        return self

    @property
    def gpu_class(self) -> gpus.GpuClass:
        """The GPU class that ``gpu`` names."""
        return gpus.find(self.gpu)


def load(path: Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe; ``overrides`` maps dotted key paths to values that replace the file's.

    A checkpoint's folder is looked for beside the recipe first, so that the two can be moved together; one that an
    override names is not. Raises RecipeError, naming the key path.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise RecipeError(
            f"cannot read it ({error.strerror or error})", where=str(path), fix="write one with `engineroom init`"
        ) from None
    except UnicodeDecodeError:
        raise RecipeError(
            "it is not UTF-8 text", where=str(path), fix="save it as UTF-8, or write one with `engineroom init`"
        ) from None
    if len(data) > MOST_BYTES:
        raise RecipeError(
            f"it is longer than {MOST_BYTES:,} bytes, so it is no recipe",
            where=str(path),
            fix="write one with `engineroom init`",
        )
    recipe = parse(text, where=str(path), overrides=overrides)
    beside = path.parent / recipe.model.source
    # os.path: a name that no file system takes, such as one of 1,000 letters, is no folder, and no error here.
    if "model.source" in (overrides or {}) or not os.path.isdir(beside):  # noqa: PTH112
        return recipe
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"source": str(beside)})})


def parse(text: str, *, where: str, overrides: dict[str, Any] | None = None) -> Recipe:
    """Check the text of a recipe. Raises RecipeError, naming ``where`` and the key path."""
    data = read_yaml(text, where=where)
    if not isinstance(data, dict):
        raise RecipeError("it should be a mapping of keys", where=where, fix="see `engineroom init` for an example")
    for key, value in (overrides or {}).items():
        _override(data, key, value)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        path, found = first_problem(error)
        fix = ""
        if (own := error.errors(include_url=False)[0])["type"] == _OWN_RULE:
            path, found, fix = (str(own["ctx"][name]) for name in ("key", "found", "fix"))
        elif path.rsplit(".", 1)[-1] in ("tensor", "pipeline", "int", "literal['auto']"):
            path = re.sub(r"\.(int|literal\['auto'\])$", "", path)
        if found == "unknown key":
            fix = _nearest_key(path)
        elif found == "missing":
            fix = "add it, or write a recipe with `engineroom init`"
        elif own["type"] == "string_type" and isinstance(own["input"], (int, float)):
            fix = "put it in quotes"
        raise RecipeError(found, where=f"{where}: {path}" if path else where, fix=fix) from None


def read_yaml(text: str, *, where: str) -> Any:
    """The value that ``text`` spells. Raises RecipeError, naming ``where`` and the line."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506  (a SafeLoader that also refuses duplicates)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}: line {mark.line + 1}" if mark else where
        words = " ".join(str(getattr(error, "problem", None) or error).split())
    except RecursionError:
        place, words = where, "nested too deeply"
    except ValueError as error:  # such as `!!int x`
        place, words = where, str(error)
    raise RecipeError(f"not valid YAML ({words[:120]})", where=place, fix="see `engineroom init` for an example")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors and for ``docs/``."""
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


class _StrictLoader(yaml.SafeLoader):
    """YAML without two surprises: the last of two equal keys wins silently, and ``2024-12-01`` is no text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the name and the kind are PyYAML's
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _mapping_without_duplicates(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = key_node.value
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key should be text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands there twice", key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


def _override(data: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = data.get(section)
        data[section] = dict(inner) if isinstance(inner, dict) else {}
        data = data[section]
    data[last] = value


#: pydantic's type of the problems that keys have together.
_OWN_RULE = "keys_together"


def _refusal(key: str, found: str, fix: str) -> PydanticCustomError:
    return PydanticCustomError(_OWN_RULE, "{found}", {"key": key, "found": found, "fix": fix})


def _nearest_key(path: str) -> str:
    import difflib

    *sections, last = path.split(".")
    model: Any = Recipe
    for section in sections:
        annotation = model.model_fields[section].annotation if section in model.model_fields else None
        choices = getattr(annotation, "__args__", (annotation,))
        model = next((choice for choice in choices if isinstance(choice, type) and issubclass(choice, Strict)), Strict)
    names = [field.alias or name for name, field in model.model_fields.items()]
    near = difflib.get_close_matches(last, names, n=1)
    return f"did you mean {near[0]}?" if near else f"use one of {', '.join(names)}" if names else "remove it"
