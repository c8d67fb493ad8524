from pathlib import Path

import pytest

from engineroom.errors import InputError
from engineroom.gateway import keys
from engineroom.gateway.keys import ApiKeys


@pytest.fixture(autouse=True)
def _look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOOK_SECONDS", 0)


def test_only_a_bearer_of_a_key_in_the_file_is_let_in(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\none-key\n\n  another  \n")
    good = ApiKeys(file)

    assert good.allow("Bearer one-key")
    assert good.allow("bearer another")
    for header in (None, "", "one-key", "Basic one-key", "Bearer", "Bearer ", "Bearer one-ke", "Bearer # of the team"):
        assert not good.allow(header), header


def test_a_changed_file_is_read_again_also_when_it_is_swapped_as_kubernetes_does(tmp_path: Path) -> None:
    for name, key in (("old", "old-key"), ("new", "new-key")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_text(key)
    link = tmp_path / "data"
    link.symlink_to("old")
    good = ApiKeys(link / "keys")
    assert good.allow("Bearer old-key")

    (tmp_path / "beside").symlink_to("new")
    (tmp_path / "beside").replace(link)

    assert good.allow("Bearer new-key")
    assert not good.allow("Bearer old-key")


def test_keys_stay_good_while_the_file_is_away_and_none_is_good_when_it_is_empty(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("key")
    good = ApiKeys(file)
    file.unlink()
    assert good.allow("Bearer key")

    file.write_text("")

    assert not good.allow("Bearer key")
    assert not good.allow("Bearer ")


@pytest.mark.parametrize("content", [None, "", "# nothing\n", b"\xff\xfe"])
def test_a_file_without_keys_is_refused_at_the_start(tmp_path: Path, content: str | bytes | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(InputError) as refusal:
        ApiKeys(file)

    assert refusal.value.where == str(file)
