"""Publish and pull against the specialists, on a real SeaweedFS of this machine, in one run.

    ci/bench artifacts       # or: python tests/benchmarks/artifacts.py [--megabytes 2048] [--small 2000] [--rounds 3]

Contestants: obstore called directly, boto3 with s3transfer, `rclone copy`, each with its concurrency and part size
tuned on this kind of machine (a publication takes all of both processors, most of them for the server, so what helps
the server helps most: parts of 5 MiB; obstore signs no payload); engineroom, which hashes every byte on the way. All of
them write to the same file system, and the fsync of what they wrote is in their time. Rounds alternate, so that a
machine that is busy for a while is busy for all; a first transfer that counts for nobody lets the server make its
volumes, which takes it seconds. Each runs in a process of its own, whose processor time and peak
memory are the kernel's figures (wait4).

"obstore+sha256" is obstore with one SHA-256 of what it uploads and nothing else: as fast as a verified publication can
be where client and server share the processors.

Also: a publication after a change of one line, and a store with 10,000 versions.
"""

import argparse
import hashlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "artifacts"))

from artifact_servers import environment, program, seaweedfs_server
from artifact_trees import write_record

from engineroom.artifacts.listing import list_artifacts
from engineroom.artifacts.publish import publish
from engineroom.artifacts.pull import pull
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.store import Pointer
from engineroom.artifacts.stores import open_store
from engineroom.documents import list_files

BUCKET = "models"
CONTESTANTS = ("engineroom", "obstore", "obstore+sha256", "boto3", "rclone")
#: docs/stores.md, "Over plain http". The peer obstore, which hashes nothing, does not even have the checksum.
TUNED = {"AWS_UNSIGNED_PAYLOAD": "true", "AWS_CHECKSUM_ALGORITHM": "crc64nvme"}


@dataclass
class Result:
    seconds: float
    cpu: float
    peak_mib: float


# --- contestants: each moves the files of one folder, and nothing else -------------------------------------------


def sync_all(folder: Path) -> None:
    """Sync everything, side by side."""

    def sync(path: Path) -> None:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(sync, [path for path in folder.rglob("*") if path.is_file()]))
    sync(folder)


def run_obstore(verb: str, prefix: str, folder: Path, *, hashing: bool = False) -> None:
    """Ranged reads and multipart uploads, 4 long transfers side by side, 16 small ones; nothing is verified."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
        unsigned_payload=True,
    )
    step = 64 << 20

    def get(item: tuple[str, int, int, int]) -> None:
        name, start, end, size = item
        path = folder / name.rpartition("/")[2]
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        options: Any = {} if (start, end) == (0, size) else {"range": (start, end)}
        for piece in obstore.get(store, name, options=options).stream(min_chunk_size=128 << 10):
            start += os.pwrite(handle, piece, start)
        os.close(handle)

    def put(path: Path) -> None:
        long = path.stat().st_size > 5 << 20
        body: Any = hashed(path) if hashing else path
        obstore.put(store, f"{prefix}/{path.name}", body, use_multipart=long, chunk_size=5 << 20, max_concurrency=3)

    def hashed(path: Path) -> Iterator[bytes]:
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while block := file.read(5 << 20):
                digest.update(block)
                yield block

    if verb == "pull":
        found = [(meta["path"], meta["size"]) for page in obstore.list(store, prefix) for meta in page]
        work = [(name, start, min(start + step, size), size) for name, size in found for start in range(0, size, step)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(get, [item for item in work if item[2] - item[1] > 1 << 20]))
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(get, [item for item in work if item[2] - item[1] <= 1 << 20]))
    else:
        paths = sorted(folder.iterdir(), key=lambda path: -path.stat().st_size)
        long = [path for path in paths if path.stat().st_size > 1 << 20]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(put, long))
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(put, paths[len(long) :]))


def run_boto3(verb: str, prefix: str, folder: Path) -> None:
    """s3transfer with 16 MiB parts, 8 threads in all for long files and 8 files at once for small ones."""
    import boto3
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config

    client = boto3.client(
        "s3",
        endpoint_url=os.environ["AWS_ENDPOINT_URL"],
        config=Config(max_pool_connections=32, s3={"addressing_style": "path"}),
    )
    config = TransferConfig(multipart_threshold=32 << 20, multipart_chunksize=16 << 20, max_concurrency=4)
    if verb == "pull":
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        names = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        with ThreadPoolExecutor(8) as pool:
            list(
                pool.map(
                    lambda name: client.download_file(
                        BUCKET, name, str(folder / name.rpartition("/")[2]), Config=config
                    ),
                    names,
                )
            )
    else:
        with ThreadPoolExecutor(8) as pool:
            list(
                pool.map(
                    lambda path: client.upload_file(str(path), BUCKET, f"{prefix}/{path.name}", Config=config),
                    sorted(folder.iterdir(), key=lambda path: -path.stat().st_size),
                )
            )


def rclone_command(verb: str, prefix: str, folder: Path) -> list[str]:
    there = f":s3,provider=Other,env_auth=true,endpoint='{os.environ['AWS_ENDPOINT_URL']}':{BUCKET}/{prefix}"
    ends = [there, str(folder)] if verb == "pull" else [str(folder), there]
    tuned = ["--transfers=8", "--checkers=8", "--multi-thread-streams=4", "--multi-thread-cutoff=32Mi"]
    tuned += ["--multi-thread-chunk-size=16Mi", "--s3-chunk-size=16Mi", "--s3-upload-concurrency=4"]
    return [str(program("rclone")), "copy", *ends, *tuned, "--ignore-times", "--s3-no-check-bucket", "-q"]


def contest(name: str, verb: str, prefix: str, folder: Path) -> None:
    """What a child process does: one transfer, timed after the imports."""
    steps: dict[str, Callable[[], object]] = {
        "obstore": lambda: run_obstore(verb, prefix, folder),
        "obstore+sha256": lambda: run_obstore(verb, prefix, folder, hashing=True),
        "boto3": lambda: run_boto3(verb, prefix, folder),
    }
    if name == "engineroom":
        import obstore.store

        reference = Reference.parse(f"s3://{BUCKET}/{prefix}/demo:v1")
        store = open_store(reference)
        steps["engineroom"] = lambda: (publish if verb == "publish" else pull)(
            *ordered(verb, reference, folder), store=store
        )
    elif name == "boto3":
        import boto3.s3.transfer  # noqa: F401
    else:
        import obstore.store  # noqa: F401
    begin = time.monotonic()
    steps[name]()
    if verb == "pull" and name != "engineroom":
        sync_all(folder)
    print(time.monotonic() - begin)


def ordered(verb: str, reference: Reference, folder: Path) -> tuple[Any, Any]:
    return (folder, reference) if verb == "publish" else (reference, folder / "tree")


def measure(name: str, verb: str, prefix: str, folder: Path) -> Result:
    """Run a contestant in a process of its own."""
    command = [sys.executable, __file__, "--contest", name, verb, prefix, str(folder)]
    if name == "rclone":
        command = rclone_command(verb, prefix, folder)
    os.sync()  # what the one before left unwritten is not in this one's time
    begin = time.monotonic()
    environ = {**os.environ, "RCLONE_CONFIG": os.devnull, **(TUNED if name == "engineroom" else {})}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    assert child.stdout
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, f"{name} failed to {verb}"
    if name == "rclone" and verb == "pull":
        sync_all(folder)
    seconds = time.monotonic() - begin if name == "rclone" else float(said.split()[-1])
    return Result(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


# --- scenes ------------------------------------------------------------------------------------------------------


def random_file(path: Path, size: int, chance: random.Random) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        while size > 0:
            file.write(chance.randbytes(min(size, 16 << 20)))
            size -= 16 << 20


def engine_tree(tree: Path, megabytes: int) -> Path:
    """Two ranks of an engine, a tokenizer and configurations."""
    chance = random.Random(7)
    for rank in range(2):
        random_file(tree / "engine" / f"rank{rank}.engine", (megabytes << 20) // 2, chance)
    random_file(tree / "tokenizer" / "tokenizer.json", 9 << 20, chance)
    for number in range(12):
        random_file(tree / "model_repository" / f"model{number}" / "config.pbtxt", 4000, chance)
    write_record(tree)
    return tree


def small_tree(tree: Path, count: int) -> Path:
    chance = random.Random(8)
    for number in range(count):
        random_file(tree / f"shard{number % 40}" / f"file{number}.bin", chance.randint(1000, 60_000), chance)
    write_record(tree)
    return tree


def warm_up(root: Path) -> Path:
    """What is sent before anybody's time counts."""
    folder = root / "warm"
    random_file(folder / "warm.bin", 64 << 20, random.Random(9))
    return folder


@contextmanager
def scratch(root: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def race(title: str, tree: Path, root: Path, rounds: int) -> dict[str, float]:
    """Every contestant publishes and pulls the same bytes, in turns; ratios to the fastest other."""
    flat = root / f"flat-{tree.name}"  # the others know no trees: one folder, the same bytes
    flat.mkdir()
    total = 0
    for number, path in enumerate(list_files(tree)):
        os.link(tree / path, flat / f"{number}-{Path(path).name}")
        total += (tree / path).stat().st_size
    ratios = {}
    measure("obstore", "publish", f"{title.replace(' ', '-')}/warm", warm_up(root))
    for verb in ("publish", "pull"):
        names = [name for name in CONTESTANTS if verb == "publish" or name != "obstore+sha256"]
        found: dict[str, list[Result]] = {name: [] for name in names}
        for number in range(rounds):
            turn = names[number % len(names) :] + names[: number % len(names)]
            for name in turn:
                prefix = f"{title.replace(' ', '-')}/{name}{number if verb == 'publish' else 0}"
                with scratch(root) as target:
                    source = tree if name == "engineroom" else flat
                    found[name].append(measure(name, verb, prefix, source if verb == "publish" else target))
        print(f"\n{title}, {verb}: {total / 2**20:,.0f} MiB, median of {rounds} rounds (SeaweedFS on loopback)")
        print(f"  {'':14}{'seconds':>9}{'MiB/s':>9}{'CPU s':>8}{'peak MiB':>10}{'  ':>3}best")
        for name, results in found.items():
            seconds = statistics.median(result.seconds for result in results)
            cpu = statistics.median(result.cpu for result in results)
            peak = max(result.peak_mib for result in results)
            best = min(result.seconds for result in results)
            print(f"  {name:14}{seconds:9.2f}{total / 2**20 / seconds:9.0f}{cpu:8.2f}{peak:10.0f}   {best:.2f}")
        medians = {name: statistics.median(result.seconds for result in results) for name, results in found.items()}
        fastest = min((name for name in names if name != "engineroom"), key=lambda name: medians[name])
        ratios[verb] = medians[fastest] / medians["engineroom"]
        print(f"  engineroom, every byte verified, moves {ratios[verb]:.2f} x what {fastest} moves")
    return ratios


def one_line(tree: Path) -> None:
    """Publish again after a change of one line."""
    reference = Reference.parse(f"s3://{BUCKET}/again/demo:v1")
    publish(tree, reference, store=open_store(reference))
    config = tree / "model_repository" / "model0" / "config.pbtxt"
    config.write_bytes(config.read_bytes() + b"\n# one line more\n")
    write_record(tree)
    begin = time.monotonic()
    done = publish(tree, Reference.parse(f"s3://{BUCKET}/again/demo:v2"), store=open_store(reference))
    seconds = time.monotonic() - begin
    print(f"\nafter a change of one line: {done.uploaded_bytes:,} bytes sent in {seconds:.2f} s")
    assert done.uploaded_bytes < 1 << 20
    assert seconds < 1


def many_versions(tree: Path, count: int) -> None:
    """Publish and list in a store with 10 versions, and with many."""
    root = f"s3://{BUCKET}/many"
    pinned = publish(tree, Reference.parse(f"{root}/demo:v0"), store=open_store(root))
    store = open_store(root)
    size = len(store.read_manifest(pinned.digest.removeprefix("sha256:")) or b"")
    pointer = Pointer(pinned.digest, size)

    def fill_up(first: int, last: int) -> None:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda number: store.write_tag("demo", f"v{number}", pointer), range(first, last)))

    def times(tag: str) -> tuple[float, float]:
        begin = time.monotonic()
        publish(tree, Reference.parse(f"{root}/demo:{tag}"), store=open_store(root))
        published = time.monotonic() - begin
        begin = time.monotonic()
        listed = list_artifacts(root, details=False)
        assert len(listed) > 1
        return published, time.monotonic() - begin

    fill_up(1, 10)
    few = [times(f"few{number}") for number in range(3)]
    fill_up(10, count)
    many = [times(f"many{number}") for number in range(3)]
    for versions, found in (("10", few), (f"{count:,}", many)):
        published, listed = (statistics.median(figures) for figures in zip(*found, strict=True))
        print(f"{versions} versions: publish {published:.2f} s, list {listed:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2048)
    parser.add_argument("--small", type=int, default=2000)
    parser.add_argument("--versions", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["long", "small", "versions"])
    parser.add_argument("--contest", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contest:
        name, verb, prefix, folder = options.contest
        contest(name, verb, prefix, Path(folder))
        return
    with tempfile.TemporaryDirectory(prefix="engineroom-bench-") as text:
        root = Path(text)
        (root / "server").mkdir()
        with seaweedfs_server(root / "server", bucket=BUCKET, volume_mb=8192) as port:
            os.environ.update(environment(port))
            if options.only in {None, "long"}:
                tree = engine_tree(root / "long", options.megabytes)
                race("engine", tree, root, options.rounds)
                one_line(tree)
            if options.only in {None, "small"}:
                race("small files", small_tree(root / "small", options.small), root, options.rounds)
            if options.only in {None, "versions"}:
                many_versions(engine_tree(root / "tiny", 1), options.versions)


if __name__ == "__main__":
    main()
