from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engineroom.artifacts.reference import Reference, is_movable, parse_root
from engineroom.errors import BadReferenceError

HEX = "0123456789abcdef" * 4

names = st.from_regex(r"[a-z0-9]{1,8}([._-][a-z0-9]{1,8}){0,3}", fullmatch=True)
tags = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", fullmatch=True)
digests = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
parts = st.text(
    st.characters(exclude_characters="/\\?#%:@", exclude_categories=["C", "Zl", "Zp", "Zs"]), min_size=1, max_size=10
).filter(lambda part: part not in {".", ".."})
locations = st.one_of(
    st.tuples(st.just("file"), st.lists(parts, min_size=1, max_size=4).map(lambda some: "/" + "/".join(some))),
    st.tuples(
        st.sampled_from(["s3", "gs", "az"]),
        st.lists(parts, max_size=3).map(lambda some: "/".join(["some-bucket", *some])),
    ),
    st.tuples(st.just("oci"), st.from_regex(r"[a-z0-9]{1,9}(\.[a-z]{1,9}){0,2}(:[0-9]{1,5})?", fullmatch=True)),
)


@given(locations, names, st.none() | tags, st.none() | digests)
def test_a_reference_reads_back_what_it_writes(
    location: tuple[str, str], name: str, tag: str | None, digest: str | None
) -> None:
    reference = Reference(*location, name, tag, digest)

    assert Reference.parse(str(reference)) == reference
    assert parse_root(reference.root) == location


@given(st.text(max_size=60) | st.text("focis3le:/@.ab%\\sh256", max_size=40))
@example("s3://bucket/name@sha256:" + HEX + "\n")
@example("file:///a/b:c:d")
def test_any_text_is_a_reference_or_refused_in_one_sentence(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except BadReferenceError as refusal:
        assert refusal.found
        assert refusal.fix
    else:
        assert ".." not in reference.location.split("/")
        assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ("bucket/models/llama", "s3://bucket/models/llama"),
        ("ftp://host/llama", "s3://bucket/llama"),
        ("s3://llama", "s3://bucket/llama"),
        ("s3://bucket/", "s3://bucket/llama"),
        ("s3://bucket//llama", "s3://bucket/models/llama"),
        ("s3://bucket/../llama", "s3://bucket/models/llama"),
        ("s3://bucket/./llama", "s3://bucket/m/llama"),
        ("s3://Bucket/llama", "s3://bucket/llama"),
        ("s3://ab/llama", "s3://abc/llama"),
        ("s3://bucket/Llama", "s3://bucket/llama"),
        ("s3://bucket/llama:", "s3://bucket/llama:v1"),
        ("s3://bucket/llama:.v1", "s3://bucket/llama:v1."),
        ("s3://bucket/llama:v 1", "s3://bucket/llama:v_1"),
        ("s3://bucket/llama:" + "v" * 129, "s3://bucket/llama:" + "v" * 128),
        ("s3://bucket/llama@sha256:" + HEX[:-1], "s3://bucket/llama@sha256:" + HEX),
        ("s3://bucket/llama@sha256:" + HEX.upper(), "s3://bucket/llama:v1@sha256:" + HEX),
        ("s3://bucket/llama@md5:" + HEX, "s3://bucket/llama@sha256:" + HEX),
        ("s3://bucket/a:b/llama", "s3://bucket/a.b/llama"),
        ("file://store/llama", "file:///store/llama"),
        ("file:///llama", "file:///store/llama"),
        ("file:///store/../llama", "file:///store/llama"),
        ("file:///store//llama", "file:///store/llama"),
        ("file:///a%20b/llama", "file:///a b/llama"),
        ("file:///a\\b/llama", "file:///a/b/llama"),
        ("file:///a\0b/llama", "file:///ab/llama"),
        ("gs://Bucket/llama", "gs://a_bucket/llama"),
        ("az://a_container/llama", "az://a-container/llama"),
        ("oci://ghcr.io", "oci://ghcr.io/llama"),
        ("oci://GHCR.io/llama", "oci://ghcr.io/llama"),
        ("oci://host:port/llama", "oci://host:5000/llama"),
        ("oci://host:5000/team//llama:v1", "oci://host:5000/team/llama:v1"),
        ("oci://host/../llama", "oci://host/team/llama@sha256:" + HEX),
        ("oci://host/" + "a" * 251, "oci://host/" + "a" * 250),
    ],
)
def test_refuses_what_cannot_be_a_reference_and_takes_its_nearest_neighbour(bad: str, good: str) -> None:
    with pytest.raises(BadReferenceError):
        Reference.parse(bad)
    assert str(Reference.parse(good)) == good


def test_relative_folders_are_taken_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")

    assert str(Reference.parse("file://./store/llama:v1")) == f"file://{tmp_path}/inner/store/llama:v1"
    assert str(Reference.parse("file://../store/llama")) == f"file://{tmp_path}/store/llama"
    with pytest.raises(BadReferenceError, match="climbs"):
        Reference.parse("file://./store/../llama")


def test_only_key_and_recipe_tags_move() -> None:
    assert is_movable("key-" + HEX)
    assert is_movable("recipe-1234")
    assert not is_movable("v1")
    assert not is_movable("latest")
    assert not is_movable("keys-1")
