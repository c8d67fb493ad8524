"""Backups: whole, incremental by content, verified, thinned out, and restored."""

import os
import random
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from artifact_servers import use_endpoint
from artifact_trees import MakeTree, contents_of, fill
from hypothesis import given
from hypothesis import strategies as st

from engineroom.artifacts import volume
from engineroom.artifacts.backup import backup, verify_backup
from engineroom.artifacts.backup_record import BackupRecord, SavedEntry, SavedFolder, link_problem
from engineroom.artifacts.garbage import collect
from engineroom.artifacts.parallel import Stop
from engineroom.artifacts.publish import publish
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.release_values import read_values
from engineroom.artifacts.restore import restore
from engineroom.artifacts.retention import Retention
from engineroom.artifacts.scrub import scrub_store
from engineroom.artifacts.stores import open_store
from engineroom.artifacts.verify import verify_artifact
from engineroom.errors import (
    ArtifactCorruptError,
    ArtifactExistsError,
    ArtifactNotFoundError,
    EngineroomError,
    InputError,
)
from engineroom.progress import Task

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.local)])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reference:
    if request.param == "file":
        return Reference.parse(f"file://{tmp_path}/backups/llm")
    use_endpoint(monkeypatch, request.getfixturevalue("seaweedfs"))
    return Reference.parse(f"s3://models/{tmp_path.name}/llm")


@pytest.fixture
def source(make_tree: MakeTree, reference: Reference) -> Reference:
    """A published artifact."""
    publish(make_tree(), reference, store=open_store(reference))
    return reference


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A volume: files of none, one and several pieces, a link, an empty folder."""
    root = tmp_path / "volume"
    fill(root / "llama" / "model.safetensors", 300_000, 1)
    fill(root / "llama" / "config.json", 500, 2)
    fill(root / "llama" / "empty", 0, 3)
    (root / "nothing").mkdir()
    (root / "latest").symlink_to("llama")
    (root / "llama" / "again.json").symlink_to("../llama/config.json")
    (root / "llama" / "run.sh").write_text("#!/bin/sh\n")
    (root / "llama" / "run.sh").chmod(0o755)
    (root / "lost+found").mkdir(mode=0o700)  # of the file system, not of the user
    return root


@pytest.fixture
def values(tmp_path: Path) -> Path:
    path = tmp_path / "values.yaml"
    path.write_text("artifact:\n  ref: s3://models/llama:v1\nhuggingFace:\n  tokenSecretName: hf-token\n")
    return path


def look(root: Path) -> dict[str, tuple[object, ...]]:
    """What is in a folder: kind, mode, time, contents."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        what = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        if path.name != "lost+found":
            found[path.relative_to(root).as_posix()] = (status.st_mode, status.st_mtime_ns // 1000, what)
    return found


def test_all_that_was_backed_up_comes_back(
    source: Reference, sources: Path, values: Path, place: Reference, tmp_path: Path
) -> None:
    done = backup([source], place, folders=[sources], values=values)
    back = restore(
        place, to=f"file://{tmp_path}/fresh", folder_to=tmp_path / "out", values_to=tmp_path / "new" / "values.yaml"
    )

    assert look(tmp_path / "out") == look(sources)
    assert (tmp_path / "new" / "values.yaml").read_bytes() == values.read_bytes()
    fresh = Reference.parse(f"file://{tmp_path}/fresh/demo:v1")
    assert verify_artifact(fresh, store=open_store(fresh)).problems == ()
    assert back.artifacts[0].reference.digest == done.record.artifacts[0].digest
    assert back.verified_bytes > 500_000
    assert done.verified_bytes == done.sent_bytes
    assert verify_backup(place, store=open_store(place)).problems == ()
    again = restore(place, to=f"file://{tmp_path}/fresh", folder_to=tmp_path / "out")
    assert (again.artifacts[0].copied_bytes, again.folders[0][1]) == (0, 0)


def test_the_next_backup_sends_what_changed(source: Reference, sources: Path, place: Reference) -> None:
    first = backup([source], place, folders=[sources])
    data = bytearray((sources / "llama" / "model.safetensors").read_bytes())
    data[100_000] ^= 1  # in the second of five pieces
    (sources / "llama" / "model.safetensors").write_bytes(data)
    planned = backup([source], place, folders=[sources], dry_run=True)
    second = backup([source], place, folders=[sources])

    assert planned.sent_bytes == pytest.approx(second.sent_bytes, abs=10)  # the record has another time
    assert first.sent_bytes > 800_000
    assert 65_536 < second.sent_bytes < 75_000
    assert second.skipped_bytes > 700_000


def test_a_pull_knows_no_backups_and_a_collection_keeps_them(
    source: Reference, sources: Path, place: Reference
) -> None:
    done = backup([source], place, folders=[sources])

    assert collect(open_store(place), grace_seconds=0).removed_blobs == 0
    assert verify_backup(done.reference, store=open_store(place)).problems == ()
    assert scrub_store(place.root).problems == ()


def test_old_backups_go_when_a_rule_lets_them(source: Reference, sources: Path, tmp_path: Path) -> None:
    place = Reference.parse(f"file://{tmp_path}/backups/llm")
    day = datetime(2026, 11, 1, 3, tzinfo=UTC)
    made = []
    for number in range(5):
        fill(sources / "changing", 70_000, 100 + number)
        made.append(backup([source], place, folders=[sources], clock=lambda number=number: day + timedelta(number)))
    for path in (tmp_path / "backups" / "blobs" / "sha256").iterdir():
        os.utime(path, (0, 0))
    rules = Retention(last=2)
    planned = backup([source], place, folders=[sources], retention=rules, dry_run=True)
    assert len(open_store(place).tags("llm")) == 5

    done = backup([source], place, folders=[sources], retention=rules)

    assert done.removed == tuple(one.reference.tag for one in made[:4]) == planned.removed
    assert open_store(place).tags("llm") == [made[4].reference.tag, done.reference.tag]
    assert done.collected is not None
    assert done.collected.removed_blobs == 0  # kept for a day after their tags went
    for path in (tmp_path / "backups" / "notices").iterdir():
        os.utime(path, (0, 0))
    freed = collect(open_store(place))
    assert freed.removed_bytes > 4 * 70_000
    for one in (made[4], done):
        assert verify_backup(one.reference, store=open_store(place)).problems == ()


def test_two_backups_of_one_second_are_two(source: Reference, place: Reference) -> None:
    now = datetime(2026, 11, 27, 12, tzinfo=UTC)
    other = Reference.parse(
        f"{source.root}/demo@{backup([source], place, clock=lambda: now).record.artifacts[0].digest}"
    )

    second = backup([other], place, clock=lambda: now)

    assert open_store(place).tags("llm") == ["20261127T120000Z", "20261127T120001Z"]
    assert second.reference.tag == "20261127T120001Z"


def test_a_backup_that_reads_back_wrong_removes_no_other(source: Reference, sources: Path, tmp_path: Path) -> None:
    place = Reference.parse(f"file://{tmp_path}/backups/llm")
    backup([source], place, folders=[sources], clock=lambda: datetime(2026, 11, 1, tzinfo=UTC))
    blobs = sorted((tmp_path / "backups" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(blobs[-1].read_bytes())
    data[0] ^= 1
    blobs[-1].write_bytes(data)

    with pytest.raises(ArtifactCorruptError, match="no older backup was removed"):
        backup([source], place, folders=[sources], retention=Retention(last=1))

    assert len(open_store(place).tags("llm")) == 2


@pytest.mark.timeout(3600)
def test_every_flipped_bit_of_a_backup_is_found_by_restore(
    make_tree: MakeTree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``ENGINEROOM_FLIPS`` sets how many bits (25)."""
    source, place = Reference.parse(f"file://{tmp_path}/store/demo:v1"), Reference.parse(f"file://{tmp_path}/bk/llm")
    publish(make_tree(megabytes=0.1), source, store=open_store(source))
    fill(tmp_path / "volume" / "file", 80_000, 5)
    backup([source], place, folders=[tmp_path / "volume"])
    count, chance = int(os.environ.get("ENGINEROOM_FLIPS", "25")), random.Random(13)
    paths = [path for path in (tmp_path / "bk").rglob("*") if path.is_file() and path.stat().st_size]
    paths = [path for path in paths if path.read_bytes() != b"{}"]  # the empty config: nobody reads it back
    for number in range(count):
        path = chance.choice(paths)
        whole = path.read_bytes()
        bit = chance.randrange(8 * len(whole))
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)

        with pytest.raises(EngineroomError):
            restore(place, to=f"file://{tmp_path}/fresh{number}", folder_to=tmp_path / f"out{number}")
        assert scrub_store(place.root).problems, f"bit {bit} of {path}"
        path.write_bytes(whole)
    assert scrub_store(place.root).problems == ()
    with capsys.disabled():
        print(f"\n{count} of {count} flipped bits found by restore and by verify")


# What cannot be backed up or restored


def test_links_that_lead_out_are_refused_and_those_inside_are_not(sources: Path, tmp_path: Path) -> None:
    place = Reference.parse(f"file://{tmp_path}/backups/llm")
    backup([], place, folders=[sources])
    for target in ("/etc/passwd", "../outside", "llama/../../outside"):
        (sources / "evil").symlink_to(target)
        with pytest.raises(InputError, match="leads out of the folder"):
            backup([], place, folders=[sources])
        (sources / "evil").unlink()


def test_sockets_are_left_out_and_said_so(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sources)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
        done = backup([], Reference.parse(f"file://{tmp_path}/backups/llm"), folders=[sources])

    assert "socket" not in {entry.path for entry in done.record.folders[0].entries}


def test_a_folder_that_changes_meanwhile_makes_no_backup(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, path = Reference.parse(f"file://{tmp_path}/backups/llm"), sources / "llama" / "config.json"
    real = volume.read_piece

    def later(piece: volume.Piece, task: Task, stop: Stop) -> Iterator[memoryview]:
        if piece.path == path:
            path.write_bytes(b"changed")
        return real(piece, task, stop)

    monkeypatch.setattr("engineroom.artifacts.backup.read_piece", later)
    with pytest.raises(InputError, match="it changed while it was backed up"):
        backup([], place, folders=[sources])

    assert open_store(place).list_tags() == []


@pytest.mark.parametrize(
    "text",
    [
        "kind: Secret\ndata: {}",
        "a:\n  hfToken: abc",
        "password: x",
        "gateway: {apiKey: sk-1}",
        "env:\n- name: X\n  value: hf_abcdefghijklmnopqrstuvwx",
        "key: |\n  -----BEGIN RSA PRIVATE KEY-----",
        "s3: {secretAccessKey: x}",
    ],
)
def test_values_with_a_secret_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(text)

    with pytest.raises(InputError, match=r"[sS]ecret"):
        read_values(path)


@pytest.mark.parametrize(
    "text",
    [
        "kind: ConfigMap",
        "hfTokenSecretName: hf",
        "existingSecret: hf",
        "token: null",
        "password: ''",
        "automountServiceAccountToken: true",
        "eos_token: </s>",
        "max_num_tokens: 8",
        "",
        "a: &a [1, *a]",
    ],
)
def test_values_without_a_secret_are_taken_as_they_are(tmp_path: Path, text: str) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(text)

    assert read_values(path) == text.encode()


def test_what_is_no_yaml_or_too_much_of_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    for data in (b"a: [", b"\xff\xfe\x00", b"a: " + b"x" * (5 << 20)):
        path.write_bytes(data)
        with pytest.raises(InputError):
            read_values(path)
    with pytest.raises(InputError, match="cannot read it"):
        read_values(tmp_path / "nothing")
    laughs = "\n".join([f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" if n else "a0: &a0 [x]" for n in range(30)])
    path.write_text(laughs)
    assert read_values(path) == laughs.encode()


def test_a_place_that_is_not_empty_is_left_alone(sources: Path, tmp_path: Path) -> None:
    place = Reference.parse(f"file://{tmp_path}/backups/llm")
    backup([], place, folders=[sources])
    full = tmp_path / "full"
    fill(full / "mine", 10, 1)

    with pytest.raises(InputError, match="not empty"):
        restore(place, folder_to=full)
    assert sorted(contents_of(full)) == ["mine"]
    with pytest.raises(InputError, match="no folder"):
        restore(place, folder_to=full / "mine")
    with pytest.raises(InputError, match="no place"):
        restore(place)
    with pytest.raises(InputError, match="has no values"):
        restore(place, values_to=tmp_path / "v.yaml")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "lost+found").mkdir()
    restore(place, folder_to=tmp_path / "empty")
    assert look(tmp_path / "empty") == look(sources)


def test_a_tag_that_is_taken_is_found_before_anything_is_restored(
    source: Reference, sources: Path, make_tree: MakeTree, tmp_path: Path
) -> None:
    place = Reference.parse(f"file://{tmp_path}/backups/llm")
    second = Reference.parse(f"{source.root}/another:v1")
    publish(make_tree("another", seed=4), second, store=open_store(second))
    backup([second, source], place, folders=[sources])
    fresh = Reference.parse(f"file://{tmp_path}/fresh/demo:v1")
    publish(make_tree("other", seed=5), fresh, store=open_store(fresh))

    with pytest.raises(ArtifactExistsError):
        restore(place, to=fresh.root, folder_to=tmp_path / "out")

    assert open_store(fresh).tags("another") == []
    assert not (tmp_path / "out").exists()


def test_two_artifacts_of_one_name_and_tag_are_refused(source: Reference, make_tree: MakeTree, tmp_path: Path) -> None:
    other = Reference.parse(f"file://{tmp_path}/elsewhere/demo:v1")
    publish(make_tree("other", seed=5), other, store=open_store(other))
    place = Reference.parse(f"file://{tmp_path}/backups/llm")

    with pytest.raises(InputError, match="same name and tag"):
        backup([source, other], place)
    assert len(backup([source, source], place).record.artifacts) == 1


def test_what_is_no_backup_is_not_restored(source: Reference, tmp_path: Path) -> None:
    backup([source], Reference.parse(f"{source.root}/llm"))
    for place, error in (
        ("nothing", ArtifactNotFoundError),
        ("demo:v1", InputError),
        ("llm:v2", ArtifactNotFoundError),
    ):
        with pytest.raises(error):
            restore(Reference.parse(f"{source.root}/{place}"), to=f"file://{tmp_path}/fresh")
    with pytest.raises(InputError, match="tagged by their time"):
        backup([source], Reference.parse(f"{source.root}/llm:v1"))
    with pytest.raises(InputError, match="nothing to back up"):
        backup([], Reference.parse(f"{source.root}/llm"))


# A backup record is not believed


def record_of(*entries: SavedEntry) -> BackupRecord:
    return BackupRecord(created="2026-11-27", folders=[SavedFolder(path="/x", name="x", entries=list(entries))])


def entry(path: str, kind: str = "folder", **fields: object) -> SavedEntry:
    return SavedEntry.model_validate({"path": path, "kind": kind, "mode": 0o755, "modified": 0, **fields})


@pytest.mark.parametrize(
    "entries",
    [
        [entry("../up")],
        [entry("/etc")],
        [entry("a"), entry("a")],
        [entry("a/b")],
        [entry("a", "link", target="b"), entry("a/b")],
        [entry("a", "link", target="/etc")],
        [entry("a", "link", target="..")],
        [entry("a", "file", size=10)],
        [entry("a", size=10)],
        [entry("a\nb")],
    ],
)
def test_a_record_that_would_write_elsewhere_is_refused(entries: list[SavedEntry]) -> None:
    with pytest.raises(ArtifactCorruptError):
        record_of(*entries).check(where="here")
    record_of(entry("a"), entry("a/b"), entry("a/l", "link", target="../a/b")).check(where="here")


@given(st.lists(st.sampled_from(["..", ".", "a", "b", ""]), max_size=6), st.integers(0, 3))
def test_a_link_is_allowed_exactly_where_it_stays_inside(parts: list[str], depth: int) -> None:
    path, target = "/".join(["d"] * depth + ["link"]), "/".join(parts)

    base = ["d"] * depth
    stays = bool(target) and not target.startswith("/")
    for part in target.split("/"):
        if part == "..":
            stays = stays and bool(base)
            base = base[:-1]
        elif part not in {"", "."}:
            base = [*base, part]
    assert (link_problem(path, target) == "") == stays


# Retention

times = st.datetimes(datetime(2024, 1, 1), datetime(2027, 1, 1)).map(
    lambda time: time.replace(microsecond=0, tzinfo=UTC)
)
rules = st.builds(Retention, st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))


@given(st.lists(times, max_size=40), rules)
def test_retention_keeps_what_its_rules_say(made: list[datetime], rule: Retention) -> None:
    kept, every = rule.kept(made), sorted(set(made), reverse=True)

    assert kept <= set(made)
    if not (rule.last or rule.daily or rule.weekly):
        assert kept == set(made)
        return
    assert not every or every[0] in kept
    assert set(every[: rule.last]) <= kept
    for count, period in ((rule.daily, "%Y-%m-%d"), (rule.weekly, "%G-%V")):
        periods = sorted({time.strftime(period) for time in every}, reverse=True)[:count]
        assert {time.strftime(period) for time in kept} >= set(periods)
    assert len(kept) <= max(1, rule.last + rule.daily + rule.weekly)


@given(st.lists(times, min_size=1, max_size=40), rules)
def test_retention_day_by_day_never_lets_go_what_one_look_would_keep(made: list[datetime], rule: Retention) -> None:
    """Applied after every backup it keeps at least what it keeps of all of them at once."""
    left: set[datetime] = set()
    for time in sorted(set(made)):
        left = rule.kept(left | {time})

    assert left == rule.kept(made)


def test_retention_of_a_month() -> None:
    month = [datetime(2026, 11, day, 3, tzinfo=UTC) for day in range(1, 29)]

    kept = Retention(last=1, daily=3, weekly=3).kept(month)

    # Sunday 15 and 22 end the weeks before that of the 28th, a Saturday.
    assert sorted(time.day for time in kept) == [15, 22, 26, 27, 28]
