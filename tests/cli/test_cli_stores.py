"""inspect, diff, copy, untag, gc, export, import, backup and restore as a user runs them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from engineroom.documents import list_files, record_file
from engineroom.engines.engine import EngineInputs, Requires
from engineroom.repository.record import FILE, BuildRecord, ServedModel

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run ``engineroom`` in ``tmp_path``."""

    def run(*arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-m", "engineroom", *arguments],
            cwd=tmp_path,
            env=os.environ | {"ENGINEROOM_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done

    return run


def make_tree(tree: Path, weights: bytes, *, precision: str = "int8") -> None:
    """A small assembled tree."""
    (tree / "engine").mkdir(parents=True, exist_ok=True)
    (tree / "engine" / "model.bin").write_bytes(weights)
    (tree / "config.pbtxt").write_text("same in all")
    (tree / FILE).unlink(missing_ok=True)
    inputs = EngineInputs(
        checkpoint="0" * 64, runtime="ctranslate2", versions={}, precision=precision, kv="int8", tp=1, pp=1, limits={}
    )
    BuildRecord(
        name="demo",
        key=inputs.key,
        inputs=inputs,
        requires=Requires(),
        model=ServedModel(client_model="tensorrt_llm", max_input_len=512, max_seq_len=1024, eos_ids=[2]),
        files=[record_file(tree, path) for path in list_files(tree)],
    ).write(tree / FILE)


@pytest.fixture
def store(run: Run, tmp_path: Path) -> str:
    """A store with two versions."""
    make_tree(tmp_path / "tree", b"one" * 1000)
    run("publish", "tree", "--to", "file://./store/demo:v1")
    make_tree(tmp_path / "tree", b"two" * 2000, precision="float32")
    run("publish", "tree", "--to", "file://./store/demo:v2")
    return f"file://{tmp_path}/store"


def as_json(run: Run, *arguments: str, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--output", "json", code=code).stdout)


def test_inspect_shows_what_is_known_and_what_is_missing(run: Run, store: str, tmp_path: Path) -> None:
    seen = as_json(run, "inspect", f"{store}/demo:v1")

    assert seen["tags"] == sorted(["v1", f"key-{seen['record']['key']}"])
    assert (seen["bytes"], seen["missing"]) == (3011, [])
    assert [file["path"] for file in seen["files"]] == ["config.pbtxt", "engine/model.bin"]
    assert yaml.safe_load(run("inspect", f"{store}/demo:v1", "-o", "yaml").stdout) == seen
    assert "engine/model.bin" in run("inspect", f"{store}/demo:v1", "--files").stdout
    blob = seen["files"][1]["blobs"][0]
    (tmp_path / "store" / "blobs" / "sha256" / blob).unlink()
    assert as_json(run, "inspect", f"{store}/demo:v1", code=3)["missing"] == ["engine/model.bin"]


def test_diff_shows_what_changed_and_what_would_travel(run: Run, store: str, tmp_path: Path) -> None:
    found = as_json(run, "diff", f"{store}/demo:v1", f"{store}/demo:v2")

    assert {one["key"] for one in found["fields"]} == {"key", "inputs.precision"}
    assert [(one["path"], one["kind"], one["before"], one["after"]) for one in found["files"]] == [
        ("engine/model.bin", "changed", 3000, 6000)
    ]
    copied = as_json(run, "copy", f"{store}/demo:v1", f"file://{tmp_path}/other/demo")
    assert copied["copied_blobs"] == 4
    planned = as_json(run, "copy", f"{store}/demo:v2", f"file://{tmp_path}/other/demo", "--dry-run")
    assert (planned["copied_bytes"], planned["copied_blobs"]) == (found["transfer_bytes"], found["transfer_blobs"])
    same = as_json(run, "diff", f"{store}/demo:v2", "tree")
    assert (same["same"], same["transfer_bytes"], same["files"]) == (True, 0, [])
    run("diff", f"{store}/demo:v2", "tree", "--exit-code")
    assert "they differ" in run("diff", f"{store}/demo:v1", "tree", "--exit-code", code=3).stderr


def test_untag_and_gc_free_what_nothing_names(run: Run, store: str) -> None:
    one = as_json(run, "untag", f"{store}/demo:v1", "--dry-run")
    assert [text.rpartition(":")[2][:4] for text in one["still_named_by"]] == ["key-"]
    assert len(as_json(run, "list", store)) == 4
    run("untag", f"{store}/demo:v1", "--all-names")
    assert len(as_json(run, "list", store)) == 2

    assert as_json(run, "gc", store)["removed_blobs"] == 0  # named until just now
    planned = as_json(run, "gc", store, "--grace", "0", "--dry-run")
    done = as_json(run, "gc", store, "--grace", "0")

    assert planned["removed"] == done["removed"]
    assert done["removed_blobs"] == 3
    assert as_json(run, "verify", store)["problems"] == []


def test_a_bundle_goes_out_and_comes_in(run: Run, store: str, tmp_path: Path) -> None:
    wrote = as_json(run, "export", f"{store}/demo:v1", f"{store}/demo:v2", "--to", "demo.tar")
    assert (tmp_path / "demo.tar.sha256").read_text() == f"{wrote['sha256']}  demo.tar\n"
    stored = as_json(run, "import", "demo.tar", "--to", f"file://{tmp_path}/second")
    assert [one["tags"][0] for one in stored] == ["v1", "v2"]
    checked = as_json(run, "verify", "demo.tar")
    assert (checked["tags"], checked["problems"]) == (2, [])
    (tmp_path / "demo.tar.sha256").write_text("0" * 64)
    refusal = run("import", "demo.tar", "--to", f"file://{tmp_path}/third", code=3).stderr
    assert refusal.startswith("error: ")
    assert refusal.count("\n") == 1
    assert not (tmp_path / "third").exists()


def test_a_backup_comes_back(run: Run, store: str, tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text("replicas: 2\n")
    arguments = [f"{store}/demo:v1", "--to", f"file://{tmp_path}/backups/llm", "--folder", "tree", "--values"]
    planned = as_json(run, "backup", *arguments, "values.yaml", "--dry-run")
    assert not (tmp_path / "backups").exists()
    made = as_json(run, "backup", *arguments, "values.yaml", "--keep-last", "3")

    assert (planned["sent_bytes"], planned["sent_blobs"]) == (made["sent_bytes"], made["sent_blobs"])
    assert made["verified_bytes"] == made["sent_bytes"] + made["skipped_bytes"]
    (listed,) = as_json(run, "list", f"file://{tmp_path}/backups")
    assert listed["backup"] == f"backup of artifact {store}/demo:v1, folder {tmp_path}/tree, values"
    assert as_json(run, "verify", made["reference"])["problems"] == []
    back = ["restore", f"file://{tmp_path}/backups/llm", "--to", f"file://{tmp_path}/fresh", "--folder-to", "out"]
    as_json(run, *back, "--dry-run")
    assert not (tmp_path / "fresh").exists()
    assert not (tmp_path / "out").exists()
    as_json(run, *back, "--values-to", "v.yaml")
    assert (tmp_path / "v.yaml").read_text() == "replicas: 2\n"
    assert as_json(run, "verify", "out")["problems"] == []
    assert as_json(run, "verify", f"file://{tmp_path}/fresh")["tags"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["inspect", "{store}/demo"], 2, "add :TAG"),
        (["inspect", "{store}/demo:v9"], 4, "engineroom list"),
        (["diff", "{store}/demo:v1", "nowhere"], 2, "engineroom assemble"),
        (["copy", "{store}/demo:v1", "nonsense"], 2, "it has no scheme"),
        (["copy", "{store}/demo:v1", "{store}/demo:v2"], 3, "already names"),
        (["untag", "{store}/demo"], 2, "write NAME:TAG"),
        (["untag", "{store}/demo:v9"], 4, "no such tag"),
        (["gc", "{store}", "--grace", "soon"], 2, "write 90s, 30m, 24h or 7d"),
        (["gc", "{store}/demo"], 4, "there is no store here"),
        (["gc", "oci://127.0.0.1:1"], 2, "a registry removes its garbage itself"),
        (["export", "{store}/demo:v1", "--to", "nowhere/demo.tar"], 2, "no such folder"),
        (["export", "{store}/demo:v1", "--to", "tree"], 2, "--layout"),
        (["import", "nothing.tar", "--to", "{store}"], 2, "no such bundle"),
        (["import", "tree/config.pbtxt", "--to", "{store}"], 2, "no plain tar"),
        (["import", "tree/config.pbtxt", "--to", "{store}", "--as", "UP"], 2, "no artifact name"),
        (["backup", "--to", "{store}/llm"], 2, "nothing to back up"),
        (["backup", "{store}/demo:v1", "--to", "{store}/llm:v1"], 2, "tagged by their time"),
        (["backup", "{store}/demo:v1", "--to", "{store}/llm", "--keep-last", "-1"], 2, "--keep-last"),
        (["backup", "--folder", "nowhere", "--to", "{store}/llm"], 2, "no such folder"),
        (["restore", "{store}/llm", "--to", "{store}"], 4, "there is no backup"),
        (["restore", "{store}/demo:v1", "--to", "{store}"], 2, "engineroom pull"),
        (["restore", "{store}/llm", "--drill", "--folder-to", "x"], 2, "a drill restores aside"),
        (["verify", "{store}/demo:v1", "--digest", "sha256:" + "0" * 64], 2, "--digest is for folders"),
    ],
)
def test_a_refusal_is_one_sentence(run: Run, store: str, arguments: list[str], code: int, words: str) -> None:
    done = run(*(argument.format(store=store) for argument in arguments), code=code)

    assert done.stdout == ""
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
