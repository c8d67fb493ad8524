"""Publish, pull, verify and list with real S3 servers on this machine."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from artifact_servers import free_port, use_endpoint
from artifact_trees import MakeTree, contents_of, fill, write_record

from engineroom import documents
from engineroom.artifacts.listing import list_artifacts
from engineroom.artifacts.publish import Published, publish
from engineroom.artifacts.pull import pull
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.store import Pointer
from engineroom.artifacts.stores import open_store
from engineroom.artifacts.verify import verify_artifact, verify_tree
from engineroom.errors import ArtifactCorruptError, ArtifactExistsError, EngineroomError, StoreError

pytestmark = pytest.mark.local


@pytest.fixture
def reference(seaweedfs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reference:
    use_endpoint(monkeypatch, seaweedfs)
    return Reference.parse(f"s3://models/{tmp_path.name}/demo:v1")


def test_a_tree_comes_back_from_a_bucket_as_it_went_there(
    make_tree: MakeTree, reference: Reference, tmp_path: Path
) -> None:
    """With chunks of the real size: the model is two of them, and a multipart upload."""
    tree, store = make_tree(), open_store(reference)
    fill(tree / "engine" / "model.bin", documents.CHUNK_BYTES + 1000, 4)
    write_record(tree)

    published = publish(tree, reference, store=store)
    pulled = pull(reference, tmp_path / "out", store=store)

    assert contents_of(tmp_path / "out") == contents_of(tree)
    assert verify_tree(tmp_path / "out", digest=published.digest).problems == ()
    assert verify_artifact(reference, store=store).problems == ()
    assert pulled.downloaded_bytes == pulled.bytes > documents.CHUNK_BYTES
    assert publish(tree, reference, store=store).already_published
    listed = {item.reference.tag: item for item in list_artifacts(reference.root)}
    assert set(listed) == {"v1", published.key_tag}
    assert listed["v1"].reference.digest == published.digest
    assert list_artifacts(f"{reference.root}/demo")[1].bytes == pulled.bytes


def test_the_same_tree_has_the_same_digest_in_a_folder_and_in_a_bucket(
    make_tree: MakeTree, reference: Reference, tmp_path: Path
) -> None:
    tree, folder = make_tree(), Reference.parse(f"file://{tmp_path}/store/demo:v1")

    here = publish(tree, folder, store=open_store(folder))
    there = publish(tree, reference, store=open_store(reference))

    assert here.digest == there.digest


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_of_two_publishers_of_one_tag_exactly_one_wins(
    make_tree: MakeTree, reference: Reference, tmp_path: Path, scheme: str
) -> None:
    trees = [make_tree("a", seed=1, megabytes=0.01), make_tree("b", seed=2, megabytes=0.01)]
    root = reference.root if scheme == "s3" else f"file://{tmp_path}/store"
    for number in range(8):
        place = Reference.parse(f"{root}/race:v{number}")
        gate = threading.Barrier(2)

        def run(tree: Path, place: Reference = place, gate: threading.Barrier = gate) -> Published | EngineroomError:
            store = open_store(place)
            gate.wait()
            try:
                return publish(tree, place, store=store)
            except EngineroomError as error:
                return error

        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(run, trees))

        won = [result for result in results if isinstance(result, Published)]
        lost = [result for result in results if isinstance(result, ArtifactExistsError)]
        assert (len(won), len(lost)) == (1, 1), results
        state = open_store(place).read_tag("race", f"v{number}")
        assert state is not None
        assert state.pointer.digest == won[0].digest


def test_a_bucket_that_keeps_conditions_is_known_as_such(reference: Reference) -> None:
    store = open_store(reference)

    assert store.keeps_conditions()
    first, second = Pointer("sha256:" + "1" * 64, 10), Pointer("sha256:" + "2" * 64, 10)
    assert store.create_tag("demo", "key-1", first)
    seen = store.read_tag("demo", "key-1")
    assert seen is not None
    assert store.move_tag("demo", "key-1", second, expected=seen)
    assert not store.move_tag("demo", "key-1", first, expected=seen)
    assert store.names() == ["demo"]


@pytest.fixture
def careless(rclone: tuple[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reference:
    use_endpoint(monkeypatch, rclone[0])
    return Reference.parse(f"s3://models/{tmp_path.name}/demo:v1")


def test_a_bucket_that_ignores_conditions_is_found_out_and_refused_for_immutable_tags(
    make_tree: MakeTree, careless: Reference, rclone: tuple[int, Path], tmp_path: Path
) -> None:
    tree, store = make_tree(), open_store(careless)

    with pytest.raises(StoreError, match="ignores conditional writes") as refusal:
        publish(tree, careless, store=store)

    assert "--unsafe-tags" in refusal.value.fix
    below = rclone[1] / "models" / tmp_path.name
    assert [path for path in below.rglob("*") if path.is_file()] == [], "the probe removed itself, nothing was sent"
    assert publish(tree, Reference.parse(f"{careless.root}/demo"), store=store).uploaded_blobs
    done = publish(tree, careless, store=store, unsafe_tags=True)
    pull(careless, tmp_path / "out", store=store)
    assert contents_of(tmp_path / "out") == contents_of(tree)
    with pytest.raises(ArtifactExistsError, match=done.digest):
        publish(make_tree("other", seed=2), careless, store=store, unsafe_tags=True)


def test_a_bit_that_flipped_in_the_bucket_fails_the_pull_with_file_and_chunk(
    make_tree: MakeTree, careless: Reference, rclone: tuple[int, Path], tmp_path: Path
) -> None:
    tree, store = make_tree(megabytes=0.1), open_store(careless)
    publish(tree, careless, store=store, unsafe_tags=True)
    record = next(file for file in verify_tree(tree).record.files if file.path == "engine/model.bin")
    blob = rclone[1] / "models" / tmp_path.name / "blobs" / "sha256" / record.sha256
    data = bytearray(blob.read_bytes())
    data[1000] ^= 1
    blob.write_bytes(data)

    with pytest.raises(ArtifactCorruptError) as refusal:
        pull(careless, tmp_path / "out", store=store)

    assert refusal.value.where.endswith("engine/model.bin, chunk 1 of 1")
    assert not (tmp_path / "out").exists()


def test_a_multipart_upload_of_a_changed_file_never_becomes_visible(make_tree: MakeTree, reference: Reference) -> None:
    tree, store = make_tree(megabytes=40), open_store(reference)
    with (tree / "engine" / "model.bin").open("r+b") as file:
        file.seek(39 << 20)
        file.write(b"changed")
    record = next(file for file in verify_tree(tree).record.files if file.path == "engine/model.bin")

    with pytest.raises(ArtifactCorruptError, match="not those of the build record"):
        publish(tree, reference, store=store)

    assert store.blob_size(record.sha256) is None
    assert store.tags("demo") == []


def test_a_store_that_does_not_answer_is_one_sentence_within_20_seconds(
    make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_endpoint(monkeypatch, free_port())
    reference = Reference.parse("s3://models/demo:v1")
    begin = time.monotonic()

    with pytest.raises(StoreError) as refusal:
        publish(make_tree(), reference, store=open_store(reference))

    assert time.monotonic() - begin < 20
    assert "AWS_ENDPOINT_URL" in refusal.value.fix
    assert "Debug" not in refusal.value.found


def test_wrong_keys_are_named(make_tree: MakeTree, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")

    with pytest.raises(StoreError, match="access was refused"):
        publish(make_tree(), reference, store=open_store(reference))


@pytest.fixture
def fixed_answer() -> Iterator[Callable[[int, str], int]]:
    """Starts servers that give one answer to every request, for what no server at hand says; returns their ports."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, code: str) -> int:
        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", "0")))
                body = f"<Error><Code>{code}</Code></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_PUT = do_HEAD = do_DELETE = answer  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1].server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_missing_bucket_is_named(
    make_tree: MakeTree, fixed_answer: Callable[[int, str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_endpoint(monkeypatch, fixed_answer(404, "NoSuchBucket"))
    missing = Reference.parse("s3://no-such-bucket/demo:v1")
    with pytest.raises(StoreError, match="no such bucket"):
        publish(make_tree(), Reference.parse("s3://no-such-bucket/demo"), store=open_store(missing))

    with pytest.raises(StoreError, match="no such bucket") as refusal:
        pull(missing, Path("unused"), store=open_store(missing))

    assert "make the bucket" in refusal.value.fix


def test_a_server_that_does_not_implement_conditions_is_found_out(
    fixed_answer: Callable[[int, str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_endpoint(monkeypatch, fixed_answer(501, "NotImplemented"))

    assert not open_store("s3://models").keeps_conditions()


def test_a_store_that_hangs_is_one_sentence_within_20_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_endpoint(monkeypatch, silent.getsockname()[1])
        reference = Reference.parse("s3://models/demo:v1")
        begin = time.monotonic()

        with pytest.raises(StoreError):
            pull(reference, Path("unused"), store=open_store(reference))

    assert time.monotonic() - begin < 20


@pytest.fixture
def sampled() -> Iterator[list[int]]:
    """Resident memory of this process above its start, sampled while the test runs."""
    process, done, seen = psutil.Process(), threading.Event(), [0]
    start = process.memory_info().rss

    def sample() -> None:
        while not done.wait(0.02):
            seen[0] = max(seen[0], process.memory_info().rss - start)

    thread = threading.Thread(target=sample)
    thread.start()
    yield seen
    done.set()
    thread.join()


def test_memory_stays_small_whatever_the_size(
    make_tree: MakeTree, reference: Reference, tmp_path: Path, sampled: list[int]
) -> None:
    tree, store = make_tree(), open_store(reference)
    for number in range(2):
        with (tree / "engine" / f"rank{number}.engine").open("wb") as file:
            file.truncate(200 << 20)  # sparse: costs no disk here
            file.write(bytes([number]))
    write_record(tree)

    publish(tree, reference, store=store)
    pull(reference, tmp_path / "out", store=store)

    assert sampled[0] < 300 << 20, f"{sampled[0] >> 20} MiB for 400 MiB"


def test_the_interpreter_does_not_load_obstore_before_a_bucket_is_opened() -> None:
    code = "import sys, engineroom.artifacts.listing, engineroom.artifacts.pull; sys.exit('obstore' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
