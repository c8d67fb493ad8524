"""``fetch`` of hf:// sources, with the real client against a Hub on this machine that fails on purpose."""

import errno
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoint_samples import CONFIG, checkpoint, index, safetensors, sharded
from heard import Heard
from hub_server import COMMIT, FakeHub

from engineroom.checkpoint import hub as hub_module
from engineroom.checkpoint.fetch import Fetched, fetch
from engineroom.checkpoint.record import CheckpointRecord
from engineroom.errors import CheckpointError, EngineroomError, HubError, InputError, StoreError

pytestmark = [pytest.mark.local, pytest.mark.timeout(60)]

SOURCE = "hf://org/model"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "PAUSES", (0.01, 0.01, 0.01))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def get(
    cache: Path, heard: Heard, source: str = SOURCE, revision: str | None = None, token: str | None = None
) -> Fetched:
    return fetch(source, revision, cache=cache, progress=heard, token=token)


def refusal(kind: type[EngineroomError], cache: Path, heard: Heard, source: str = SOURCE, **more: Any) -> str:
    """The one sentence, once it is sure that nothing is left that looks like a checkpoint."""
    with pytest.raises(EngineroomError) as caught:
        get(cache, heard, source, **more)
    assert type(caught.value) is kind
    assert not list(cache.rglob("checkpoint.json"))
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


# What arrives


def test_the_real_client_downloads_from_this_hub(hub: FakeHub, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    files = checkpoint()
    hub.add("org/model", files)
    for name in ("config.json", "model.safetensors"):
        path = hf_hub_download("org/model", name, endpoint=hub.endpoint, local_dir=tmp_path, token="hf_good")
        assert Path(path).read_bytes() == files[name]
    assert {request.method for request in hub.requests} == {"HEAD", "GET"}


def test_a_branch_is_resolved_to_its_commit_and_recorded(hub: FakeHub, cache: Path, heard: Heard) -> None:
    files = checkpoint()
    hub.add("org/model", files)

    fetched = get(cache, heard)

    assert fetched.hit is None
    assert fetched.folder == cache / "checkpoints" / "org--model" / COMMIT
    assert (fetched.record.source, fetched.record.revision) == (SOURCE, COMMIT)
    assert {file.path: file.sha256 for file in fetched.record.files} == {
        name: hashlib.sha256(content).hexdigest() for name, content in files.items()
    }
    assert CheckpointRecord.read(fetched.folder / "checkpoint.json", made_by="") == fetched.record
    assert {path.name for path in fetched.folder.iterdir()} == {*files, "checkpoint.json"}


def test_only_files_that_serve_are_fetched(hub: FakeHub, cache: Path, heard: Heard) -> None:
    wanted = sharded()
    names = (
        "README.md .gitattributes model.gguf pytorch_model.bin tf_model.h5 flax_model.msgpack consolidated.safetensors"
    )
    names += (
        " consolidated.00.pth model.safetensors onnx/model.safetensors original/params.json ../escape.json /etc/x.json"
    )
    unwanted = dict.fromkeys(names.split(), b"x")
    hub.add("org/model", wanted | unwanted)

    fetched = get(cache, heard)

    assert [file.path for file in fetched.record.files] == sorted(wanted)
    assert not {Path(request.path).name for request in hub.requests} & {Path(name).name for name in unwanted}


def test_equal_bytes_have_equal_digests_from_the_hub_and_from_a_clone(
    hub: FakeHub, cache: Path, heard: Heard, tmp_path: Path
) -> None:
    files = sharded()
    hub.add("org/model", files)
    clone = tmp_path / "clone"
    (clone / "original").mkdir(parents=True)
    for name, content in {
        **files,
        "README.md": b"card",
        "consolidated.safetensors": b"x",
        "original/a.pth": b"x",
    }.items():
        (clone / name).write_bytes(content)

    assert get(cache, heard).record.digest == get(cache, heard, str(clone)).record.digest


def test_progress_counts_every_byte_once(hub: FakeHub, cache: Path, heard: Heard) -> None:
    files = sharded(200_000)
    hub.add("org/model", files)
    hub.fail("00002-of", "reset", after=70_000)
    hub.fail("00003-of", "truncate", after=100_000)
    hub.fail("00003-of", "ignore-range")

    get(cache, heard)

    downloaded = sum(total or 0 for title, total in heard.tasks.items() if title.startswith("download"))
    assert downloaded == sum(len(content) for content in files.values())
    assert heard.advanced == downloaded + (heard.tasks["hash checkpoint"] or 0)


def test_the_token_goes_to_the_hub_and_never_to_the_cdn(
    hub: FakeHub, cache: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/model", checkpoint(), gated=True)
    monkeypatch.setenv("HF_TOKEN", "hf_good")

    get(cache, heard)

    assert {request.authorization for request in hub.requests if request.origin == "hub"} == {"Bearer hf_good"}
    assert {request.authorization for request in hub.requests if request.origin == "cdn"} == {None}
    assert "hf_good" not in "".join(path.read_text(errors="replace") for path in cache.rglob("*") if path.is_file())


def test_the_token_file_below_hf_home_is_used(
    hub: FakeHub, cache: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("hf_good\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    hub.add("org/model", checkpoint(), gated=True)

    assert get(cache, heard).hit is None


def test_a_mirror_that_lists_names_only_is_asked_file_by_file(hub: FakeHub, cache: Path, heard: Heard) -> None:
    hub.add("org/model", checkpoint(README__md=b"x"), lists_metadata=False)

    assert get(cache, heard).hit is None
    assert not any("README" in request.path for request in hub.requests)


def test_the_client_says_nothing_of_its_own(
    hub: FakeHub, cache: Path, heard: Heard, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.add("org/model", checkpoint())
    hub.fail("/api/models", "status", status=503, headers={"X-HF-Warning": "unauthenticated; set a token"})
    hub.fail("/resolve/", "status", status=503, headers={"X-HF-Warning": "slow; wait"})

    get(cache, heard)

    assert capfd.readouterr() == ("", "")


# The second time


def test_a_second_fetch_is_a_hit_that_says_so(hub: FakeHub, cache: Path, heard: Heard) -> None:
    hub.add("org/model", checkpoint())
    first = get(cache, heard)
    before = len(hub.requests)

    second = get(cache, heard)

    assert second.record == first.record
    assert second.hit is not None
    assert "is in the cache" in second.hit
    assert heard.said[-1] == second.hit
    assert len(hub.requests) == before + 1  # what main means now


def test_a_full_commit_is_a_hit_without_asking_anybody(
    hub: FakeHub, cache: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/model", checkpoint())
    get(cache, heard)
    before = len(hub.requests)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    assert get(cache, heard, f"{SOURCE}@{COMMIT}").hit
    assert get(cache, heard, SOURCE, COMMIT).hit
    assert len(hub.requests) == before


def test_offline_a_branch_is_what_it_was_when_last_asked(
    hub: FakeHub, cache: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/model", checkpoint(), revisions=("main", "refs/pr/1"))
    get(cache, heard)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = len(hub.requests)

    hit = get(cache, heard).hit

    assert hit is not None
    assert f"offline: main was {COMMIT} when the Hub was last asked" in hit
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        get(cache, heard, SOURCE, "refs/pr/1")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        get(cache, heard, SOURCE, "f" * 40)
    assert len(hub.requests) == before


def test_when_a_branch_moves_the_new_commit_is_fetched(hub: FakeHub, cache: Path, heard: Heard) -> None:
    hub.add("org/model", checkpoint())
    first = get(cache, heard)
    hub.add("org/model", checkpoint(8192), commit="a" * 40)

    second = get(cache, heard)

    assert second.hit is None
    assert second.folder.name == "a" * 40
    assert first.folder.is_dir()


@pytest.mark.parametrize("damage", ["shorter", "missing", "no record"])
def test_an_entry_that_is_not_whole_is_repaired_with_what_is_good(
    damage: str, hub: FakeHub, cache: Path, heard: Heard
) -> None:
    files = sharded(100_000)
    hub.add("org/model", files)
    folder = get(cache, heard).folder
    victim = folder / "model-00002-of-00003.safetensors"
    if damage == "shorter":
        os.truncate(victim, 50_000)
    elif damage == "missing":
        victim.unlink()
    else:
        (folder / "checkpoint.json").unlink()
    before = hub.sent(".safetensors")

    fetched = get(cache, heard, f"{SOURCE}@{COMMIT}")

    assert fetched.hit is None
    assert {name: (folder / name).read_bytes() for name in files} == files
    lost = {"shorter": len(files[victim.name]) - 50_000, "missing": len(files[victim.name]), "no record": 0}[damage]
    assert hub.sent(".safetensors") - before == lost


def test_two_processes_at_once_fetch_once(hub: FakeHub, cache: Path, heard: Heard) -> None:
    files = checkpoint(3_000_000)
    hub.add("org/model", files)
    hub.bytes_per_second = 6e6
    children = [_child(cache) for _ in range(2)]

    assert [child.wait(30) for child in children] == [0, 0]
    assert hub.sent("model.safetensors") == len(files["model.safetensors"])


# Failures that pass


@pytest.mark.parametrize(
    ("kind", "after"), [("reset", 0), ("reset", 300_000), ("truncate", 300_000), ("silent", 0), ("silent", 300_000)]
)
def test_a_broken_connection_is_continued_where_it_broke(
    kind: str, after: int, hub: FakeHub, cache: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    files = checkpoint(600_000)
    hub.add("org/model", files)
    hub.fail("model.safetensors", kind, after=after)
    if after:  # the redirect of the Hub has no content: it is the CDN's answer that breaks
        hub.faults[0].path = "org/model/model.safetensors"

    fetched = get(cache, heard)

    assert (fetched.folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    # A reset may destroy what was sent but not yet read, so a little may come twice; never the whole file.
    assert hub.sent("model.safetensors") <= len(files["model.safetensors"]) + (after if kind == "reset" else 0)


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_a_fault_of_the_server_that_passes_is_not_noticed(status: int, hub: FakeHub, cache: Path, heard: Heard) -> None:
    hub.add("org/model", checkpoint())
    hub.fail("/api/models", "status", status=status)
    hub.fail("/resolve/", "status", status=status)

    assert get(cache, heard).hit is None


def test_a_short_rate_limit_is_waited_for(hub: FakeHub, cache: Path, heard: Heard) -> None:
    hub.add("org/model", checkpoint())
    hub.fail("/api/models", "status", status=429, headers={"Retry-After": "1"})
    hub.fail("/resolve/", "status", status=429, headers={"RateLimit": '"resolvers";r=0;t=1'})
    begin = time.monotonic()

    assert get(cache, heard).hit is None
    assert time.monotonic() - begin >= 2


def test_a_server_without_ranges_sends_the_file_again(hub: FakeHub, cache: Path, heard: Heard) -> None:
    files = checkpoint(600_000)
    hub.add("org/model", files)
    hub.fail("org/model/model.safetensors", "truncate", after=300_000)
    hub.fail("org/model/model.safetensors", "ignore-range")

    assert (get(cache, heard).folder / "model.safetensors").read_bytes() == files["model.safetensors"]


def _arrived(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.rglob("*.safetensors"))


@pytest.mark.parametrize("round_", range(3))
def test_kill_9_in_the_middle_then_the_rest_is_fetched(round_: int, hub: FakeHub, cache: Path, heard: Heard) -> None:
    files = sharded(4_000_000, parts=2)
    hub.add("org/model", files)
    total = sum(len(content) for name, content in files.items() if name.endswith(".safetensors"))
    hub.bytes_per_second = 2.5e6
    child = _child(cache)
    enough = [1_000_000, 3_000_000, 6_500_000][round_]
    deadline = time.monotonic() + 30
    # What lies on the disk, not what the server sent: on a busy machine much of that still waits in sockets.
    while _arrived(cache) < enough and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    hub.bytes_per_second = None
    time.sleep(0.2)  # the server notices
    assert not list(cache.rglob("checkpoint.json"))
    assert not (cache / "checkpoints" / "org--model" / COMMIT).exists()
    kept = _arrived(cache)
    before = hub.sent(".safetensors")

    fetched = get(cache, heard)

    assert hub.sent(".safetensors") - before == total - kept
    assert enough <= kept < total
    assert any("are here from an earlier run" in text for text in heard.said)
    assert {name: (fetched.folder / name).read_bytes() for name in files} == files


def test_a_bad_part_of_an_earlier_run_is_thrown_away(hub: FakeHub, cache: Path, heard: Heard) -> None:
    files = checkpoint(600_000)
    hub.add("org/model", files)
    staging = cache / "checkpoints" / "org--model" / f".{COMMIT}.staging"
    staging.mkdir(parents=True)
    (staging / "model.safetensors").write_bytes(bytes(300_000))
    (staging / "config.json").write_bytes(bytes(10_000))  # longer than it should be
    (staging / "stray").write_bytes(b"x")

    folder = get(cache, heard).folder

    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "checkpoint.json"} == files


# Failures that stay: each in its own sentence


def test_gated_without_a_token(hub: FakeHub, cache: Path, heard: Heard) -> None:
    hub.add("org/model", checkpoint(), gated=True)

    said = refusal(InputError, cache, heard)

    assert said == (
        f"hf://org/model@main; the model is gated; accept its licence at {hub.endpoint}/org/model and set HF_TOKEN"
    )
    assert get(cache, heard, token="hf_good").hit is None


@pytest.mark.parametrize("code", [{"X-Error-Code": "GatedRepo"}, {}])
def test_gated_for_an_account_without_access(code: dict[str, str], hub: FakeHub, cache: Path, heard: Heard) -> None:
    hub.add("org/model", checkpoint(), gated=True)
    hub.fail("/resolve/", "status", status=403, headers=code, times=-1)

    assert "the account behind your token has no access" in refusal(InputError, cache, heard, token="hf_good")


def test_missing_repository(hub: FakeHub, cache: Path, heard: Heard) -> None:
    assert f"there is no such model on {hub.endpoint}" in refusal(InputError, cache, heard)
    assert "a private model looks the same" in refusal(InputError, cache, heard)
    assert "whether your token may read it" in refusal(InputError, cache, heard, token="hf_good")
    assert not cache.exists()
    hub.fail("/api", "status", status=404)  # a mirror that gives no code
    assert "there is no such model" in refusal(InputError, cache, heard)


def test_missing_revision(hub: FakeHub, cache: Path, heard: Heard) -> None:
    hub.add("org/model", checkpoint())

    said = refusal(InputError, cache, heard, "hf://org/model@v9")

    assert "the model has no revision 'v9'" in said
    assert not cache.exists()


def test_renamed_repository_goes_on_under_its_new_name(
    hub: FakeHub, cache: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("neworg/newname", checkpoint())
    hub.renamed["org/model"] = "neworg/newname"

    fetched = get(cache, heard)

    assert fetched.record.source == "hf://neworg/newname"
    assert fetched.folder.parent.name == "neworg--newname"
    assert any("org/model is called neworg/newname on the Hub now" in text for text in heard.said)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert get(cache, heard).folder == fetched.folder
    assert get(cache, heard, "hf://neworg/newname", COMMIT).hit


def test_rate_limited(hub: FakeHub, cache: Path, heard: Heard) -> None:
    hub.add("org/model", checkpoint())
    hub.fail("/api", "status", status=429, headers={"Retry-After": "120"})
    assert "(HTTP 429); try again after 120 seconds, or set HF_TOKEN" in refusal(HubError, cache, heard)
    hub.fail("/api", "status", status=429, headers={"RateLimit": '"api";r=0;t=240'})
    assert "try again after 240 seconds" in refusal(HubError, cache, heard, token="hf_good")
    hub.fail("/resolve/", "status", status=429, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, times=-1)
    assert "try again in a few minutes" in refusal(HubError, cache, heard)


def test_bad_token(hub: FakeHub, cache: Path, heard: Heard) -> None:
    hub.add("org/model", checkpoint())
    assert "the Hub does not accept your token" in refusal(InputError, cache, heard, token="hf_wrong")
    assert "it holds characters that no token has" in refusal(InputError, cache, heard, token="hf_\N{SNOWMAN}")
    assert "it holds characters that no token has" in refusal(InputError, cache, heard, token="a\r\nX: y")


def test_server_fault_that_stays(hub: FakeHub, cache: Path, heard: Heard) -> None:
    hub.add("org/model", checkpoint())
    hub.fail("/api", "status", status=503, times=-1)
    assert "has a fault of its own (HTTP 503); try again later" in refusal(HubError, cache, heard)
    hub.faults.clear()
    hub.fail("org/model/model.safetensors", "status", status=500, times=-1)
    assert "model.safetensors" in refusal(HubError, cache, heard)


def test_connection_that_breaks_again_and_again(hub: FakeHub, cache: Path, heard: Heard) -> None:
    hub.add("org/model", checkpoint())
    hub.fail("model.safetensors", "reset", times=-1)
    assert "run it again: it goes on where it was" in refusal(HubError, cache, heard)


def test_silent_server(hub: FakeHub, cache: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    monkeypatch.setattr(hub_module, "PAUSES", (0.01,))
    hub.add("org/model", checkpoint())
    hub.fail("/api", "silent", times=-1)
    assert "sent nothing for 1 seconds" in refusal(HubError, cache, heard)


def test_no_route(hub: FakeHub, cache: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound but not listening: refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert "connection refused" in refusal(HubError, cache, heard)
    monkeypatch.setenv("HF_ENDPOINT", "http://no-such-host.invalid")
    said = refusal(HubError, cache, heard)
    assert "cannot reach http://no-such-host.invalid (" in said
    assert "HF_ENDPOINT" in said


def test_no_route_names_the_cached_commit(
    hub: FakeHub, cache: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/model", checkpoint())
    get(cache, heard)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    with pytest.raises(HubError, match=f"HF_HUB_OFFLINE=1 uses the cached commit {COMMIT[:12]}"):
        get(cache, heard)


def test_tls_on_a_port_without_tls(hub: FakeHub, cache: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint.replace("http:", "https:"))
    assert "cannot reach https://" in refusal(HubError, cache, heard)


@pytest.mark.parametrize("endpoint", ["ftp://hub", "hub.example", "http://"])
def test_endpoint_that_is_no_address(
    endpoint: str, hub: FakeHub, cache: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert "it is no http or https address" in refusal(InputError, cache, heard)


def test_wrong_bytes_are_deleted(hub: FakeHub, cache: Path, heard: Heard) -> None:
    hub.add("org/model", checkpoint())
    hub.fail("org/model/model.safetensors", "flip")
    said = refusal(HubError, cache, heard)
    assert "model.safetensors; what arrived is not what the Hub lists: its SHA-256 differs; it was deleted" in said
    assert not list(cache.rglob("model.safetensors"))

    hub.fail("resolve/" + COMMIT + "/tokenizer_config.json", "flip")
    shutil.rmtree(cache)
    assert "its git hash differs" in refusal(HubError, cache, heard)
    assert get(cache, heard).hit is None


def test_a_file_that_is_longer_than_listed_is_refused(hub: FakeHub, cache: Path, heard: Heard) -> None:
    hub.add("org/model", checkpoint(), claimed_sizes={"model.safetensors": 100})
    assert "is not what the Hub lists" in refusal(HubError, cache, heard)


def test_full_disk_is_seen_before_the_download(hub: FakeHub, cache: Path, heard: Heard) -> None:
    hub.add("org/model", checkpoint(), claimed_sizes={"model.safetensors": 10**15})
    said = refusal(StoreError, cache, heard)
    assert "1000.0 TB are needed" in said
    assert "are free" in said
    assert hub.sent("model.safetensors") == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_in_the_middle(hub: FakeHub, small_disk: Path, heard: Heard) -> None:
    hub.add("org/model", checkpoint(3_000_000))
    hub.bytes_per_second = 3e6
    other = small_disk / "of-somebody-else"

    def fill() -> None:
        while hub.sent("model.safetensors") < 500_000:
            time.sleep(0.01)
        try:
            other.write_bytes(bytes(4_000_000))
        except OSError as error:
            assert error.errno == errno.ENOSPC

    thread = threading.Thread(target=fill)
    thread.start()
    said = refusal(StoreError, small_disk / "cache", heard)
    thread.join()
    assert "the disk is too full" in said
    assert "MB are needed" in said
    other.unlink()
    hub.bytes_per_second = None
    assert get(small_disk / "cache", heard).hit is None


def test_a_cache_that_cannot_be_written(hub: FakeHub, tmp_path: Path, heard: Heard) -> None:
    hub.add("org/model", checkpoint())
    (tmp_path / "file").write_text("")
    assert "ENGINEROOM_CACHE" in refusal(StoreError, tmp_path / "file" / "cache", heard)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>login</html>", b"[]", b"null", b"{}", b'{"id": 3}', b'{"id": "a/b", "sha": null, "siblings": []}',
     b'{"id": "../../etc", "sha": "%s", "siblings": [{"rfilename": "config.json"}]}' % COMMIT.encode(),
     b'{"id": "org/model", "sha": "../../x", "siblings": [{"rfilename": "config.json"}]}',
     b'{"id": "org/model", "sha": "%s", "siblings": [{"size": 1}]}' % COMMIT.encode(),
     b'{"id": "org/model", "sha": "%s", "siblings": "abc"}' % COMMIT.encode(),
     b'{"id": "org/model", "sha": "%s", "siblings": [{"rfilename": "config.json", "lfs": 3}]}' % COMMIT.encode()],
)  # fmt: skip
def test_an_endpoint_that_is_no_hub(body: bytes, hub: FakeHub, cache: Path, heard: Heard) -> None:
    hub.fail("/api", "status", status=200, body=body)
    assert "does not answer as a Hub does" in refusal(HubError, cache, heard)
    assert not cache.exists()


@pytest.mark.parametrize(
    "lfs", [{"sha256": "../x", "size": 3, "pointerSize": 1}, {"sha256": 3, "size": 3, "pointerSize": 1}]
)
@pytest.mark.parametrize("size", [-1, "3", 1.5])
def test_absurd_sizes_and_hashes_of_a_hub(
    lfs: dict[str, Any], size: Any, hub: FakeHub, cache: Path, heard: Heard
) -> None:
    siblings = [{"rfilename": name, "size": size, "lfs": lfs} for name in checkpoint()]
    body = json.dumps({"id": "org/model", "sha": COMMIT, "siblings": siblings}).encode()
    hub.fail("/api", "status", status=200, body=body)
    assert "it gives no size and hash" in refusal(HubError, cache, heard)


# Models that would not serve are refused before their weights are fetched


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": b"{}"}, "config.json; architectures is missing"),
        ({"config.json": json.dumps({**CONFIG, "architectures": ["T5Model"]}).encode()}, "is not a model that"),
        ({"config.json": None}, "there is no config.json"),
        ({"tokenizer.json": None}, "there is no tokenizer.json"),
        ({"tokenizer.json": b"[]"}, "tokenizer.json; it should hold a JSON object"),
        ({"model.safetensors": None, "pytorch_model.bin": b"x"}, "reading a pickle runs whatever code is in it"),
        ({"model.safetensors": None, "model.gguf": b"x"}, "there are no safetensors weights"),
        ({"model.safetensors.index.json": index(w="../up.safetensors")}, "which is not there"),
        ({"model.safetensors.index.json": index(w="other.safetensors")}, "which is not there"),
        ({"model.safetensors.index.json": b'{"weight_map": {"w": ["x"]}}'}, "which is not there"),
        ({"model.safetensors": None, "a.safetensors": b"", "b.safetensors": b""}, "2 safetensors files and no"),
        ({"model.safetensors": None, "model-00001-of-00002.safetensors": b""}, "1 of 2 safetensors parts"),
    ],
)  # fmt: skip
def test_what_would_not_serve_is_refused_early(
    files: dict[str, bytes | None], said: str, hub: FakeHub, cache: Path, heard: Heard
) -> None:
    content = {name: body for name, body in {**checkpoint(), **files}.items() if body is not None}
    hub.add("org/model", content)

    sentence = refusal(CheckpointError, cache, heard)

    assert said in sentence
    assert sentence.startswith("hf://org/model@main")
    assert str(cache) not in sentence
    assert hub.sent(".safetensors") == hub.sent(".safetensors.index.json")
    assert not [path for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock")]


def test_weights_that_are_no_safetensors_leave_nothing(hub: FakeHub, cache: Path, heard: Heard) -> None:
    hub.add("org/model", checkpoint() | {"model.safetensors": b"\xff" * 100})
    assert "model.safetensors; its header claims" in refusal(CheckpointError, cache, heard)
    assert not [path for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock")]


def test_parts_without_an_index_are_one_model(hub: FakeHub, cache: Path, heard: Heard) -> None:
    files = sharded()
    del files["model.safetensors.index.json"]
    hub.add("org/model", files | {"adapter_model.safetensors": safetensors({"lora": 8})})
    assert [file.path for file in get(cache, heard).record.files] == sorted(files)


def _child(cache: Path) -> "subprocess.Popen[bytes]":
    program = (
        "import sys; from pathlib import Path; from engineroom.checkpoint.fetch import fetch;"
        "from engineroom.progress import QUIET; fetch(sys.argv[1], None, cache=Path(sys.argv[2]), progress=QUIET)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", program, SOURCE, str(cache)], env=environment)
