"""What looking after a store costs with 10 versions in it and with 10,000, in one run: SeaweedFS, and a folder.

    ci/bench artifact_verbs      # or: python tests/benchmarks/artifact_verbs.py [--versions 10000] [--only s3|file]

Every version has a manifest, a build record and a configuration of its own; its other files are those of all. Each
verb runs in a process of its own, whose processor time and peak memory (VmHWM) are the kernel's figures; requests are
counted by SeaweedFS itself. "the same again" has the manifests in its cache, "gc, 30 blobs go" uses none. "plain
listing" is obstore listing every object of the store and nothing else: no garbage collection of a bucket can be
quicker, since it has to see every blob.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "artifacts"))

from artifact_servers import environment, free_port, seaweedfs_server
from artifact_trees import write_record

from artifacts import engine_tree
from engineroom.artifacts.backup import backup
from engineroom.artifacts.copying import copy
from engineroom.artifacts.garbage import collect
from engineroom.artifacts.inspection import inspect
from engineroom.artifacts.listing import list_artifacts
from engineroom.artifacts.manifest import make_manifest
from engineroom.artifacts.manifest_cache import ManifestCache
from engineroom.artifacts.publish import publish, read_record
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.scrub import scrub_store
from engineroom.artifacts.source import cut_files
from engineroom.artifacts.store import CollectableStore, Pointer
from engineroom.artifacts.stores import open_store
from engineroom.documents import FileRecord
from engineroom.repository.record import BuildRecord

BUCKET = "models"
CHANGING = "model_repository/model0/config.pbtxt"
Blobs = list[tuple[str, bytes]]


# --- verbs: what a child process times -------------------------------------------------------------------------


def plain_listing(root: str) -> None:
    if root.startswith("file://"):
        for _, _, _ in os.walk(root.removeprefix("file://")):
            pass
        return
    import obstore
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    for page in obstore.list(store, root.removeprefix(f"s3://{BUCKET}/"), chunk_size=1000):
        len(page)


def copy_one_more(root: str) -> None:
    source = Reference.parse(f"{root}-source/demo:new")
    to = Reference.parse(f"{root}/demo:copied{time.time_ns()}")
    copy(source, to, source_store=open_store(source), store=open_store(to))


def inspect_one(root: str) -> None:
    reference = Reference.parse(f"{root}/demo:v1")
    assert not inspect(reference, store=open_store(reference)).missing


def manifests(root: str) -> ManifestCache:
    """A cache of this run and this store."""
    return ManifestCache(Path(os.environ["ENGINEROOM_CACHE"], root.partition(":")[0]))


def back_up(root: str) -> None:
    backup([Reference.parse(f"{root}/demo:v1")], Reference.parse(f"{root}/backups"))


VERBS: dict[str, Callable[[str], object]] = {
    "plain listing": plain_listing,
    "list": lambda root: list_artifacts(root, details=False),
    "list --details": lambda root: list_artifacts(root, details=True),
    "inspect": inspect_one,
    "gc --dry-run": lambda root: collect(open_store(root), dry_run=True, cache=manifests(root)),
    "the same again": lambda root: collect(open_store(root), dry_run=True, cache=manifests(root)),
    "gc, 30 blobs go": lambda root: collect(open_store(root), grace_seconds=0),
    "copy one more": copy_one_more,
    "backup, unchanged": back_up,
    "verify": lambda root: scrub_store(root).check(),
}


# --- the store ---------------------------------------------------------------------------------------------------


def versions(tree: Path, numbers: range) -> Iterator[tuple[int, Blobs, Pointer]]:
    """Blobs that only this version has, its manifest last."""
    record, _ = read_record(tree)
    others = [file for file in record.files if file.path != CHANGING]
    for number in numbers:
        config = f"# version {number}\n".encode() * 50
        sha256 = hashlib.sha256(config).hexdigest()
        changed = FileRecord(path=CHANGING, size=len(config), sha256=sha256, chunks=[sha256])
        files = sorted([*others, changed], key=lambda file: file.path)
        data = BuildRecord.to_json(record.model_copy(update={"files": files}))
        manifest = make_manifest(data, cut_files(tree, files)).to_json()
        blobs = [(hashlib.sha256(each).hexdigest(), each) for each in (config, data, manifest)]
        yield number, blobs, Pointer(f"sha256:{blobs[-1][0]}", len(manifest))


def fill_up(root: str, tree: Path, numbers: range, *, tagged: bool = True) -> None:
    """Put versions into a store, without the fsyncs of a publication."""
    store = open_store(root)
    folder = Path(root.removeprefix("file://")) if root.startswith("file://") else None

    def put(version: tuple[int, Blobs, Pointer]) -> None:
        number, blobs, pointer = version
        for blob, data in blobs:
            if folder:
                (folder / "blobs/sha256" / blob).write_bytes(data)
            else:
                store.write_blob(blob, len(data), [memoryview(data)])
        if tagged and folder:
            (folder / f"refs/demo/tags/v{number}").write_bytes(pointer.to_json())
        elif tagged:
            store.write_tag("demo", f"v{number}", pointer)

    with ThreadPoolExecutor(1 if folder else 16) as pool:
        list(pool.map(put, versions(tree, numbers)))


# --- measuring -----------------------------------------------------------------------------------------------------


@dataclass
class Result:
    seconds: float
    cpu: float
    peak_mib: float
    requests: Counter[str]


def requests_so_far(metrics: int | None) -> Counter[str]:
    """By their kind, as SeaweedFS counts them."""
    if metrics is None:
        return Counter()
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found: Counter[str] = Counter()
    for line in re.findall(r'^SeaweedFS_s3_request_total\{.*type="(\w+)".*\} (\S+)$', text, flags=re.MULTILINE):
        found[line[0]] += int(float(line[1]))
    return found


def measure(verb: str, root: str, metrics: int | None) -> Result:
    before = requests_so_far(metrics)
    command = [sys.executable, __file__, "--verb", verb, root]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    seconds, cpu, peak = map(float, said.split()[-3:])
    return Result(seconds, cpu, peak / 1024, requests_so_far(metrics) - before)


def run_verb(verb: str, root: str) -> None:
    import obstore.store  # noqa: F401 - not the verb's time

    begin, cpu = time.monotonic(), time.process_time()
    VERBS[verb](root)
    took = time.monotonic() - begin, time.process_time() - cpu
    print(*took, re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def compare(root: str, tree: Path, counts: list[int], verbs: list[str], metrics: int | None) -> None:
    start = Reference.parse(f"{root}/demo:v0")
    publish(tree, start, store=open_store(start))
    source = Reference.parse(f"{root}-source/demo:new")
    found: dict[str, list[Result]] = {verb: [] for verb in verbs}
    done = 1
    for count in counts:
        fill_up(root, tree, range(done, count))
        done = count
        for verb in verbs:
            if verb.startswith("gc,"):
                fill_up(root, tree, range(1_000_000 + count, 1_000_010 + count), tagged=False)
            if verb == "copy one more":
                config = tree / CHANGING
                config.write_text(f"# one more, beside {count}\n")
                write_record(tree)
                new = Reference.parse(f"{root}-source/demo:new")
                store = open_store(source)
                assert isinstance(store, CollectableStore)
                store.remove_tag("demo", "new")
                publish(tree, new, store=store)
            found[verb].append(measure(verb, root, metrics))
    print(f"\n{root.partition('://')[0]}://, {' and '.join(f'{count:,}' for count in counts)} versions")
    head = f"{'seconds':>9}{'CPU s':>8}{'MiB':>6}{'requests':>10}"
    print(f"  {'':18}" + "  ".join(head for _ in counts) + "   times the seconds")
    for verb, results in found.items():
        cells = [f"{r.seconds:9.2f}{r.cpu:8.2f}{r.peak_mib:6.0f}{r.requests.total() or '':>10}" for r in results]
        kinds = ", ".join(f"{kind} {number:,}" for kind, number in results[-1].requests.most_common(4))
        print(f"  {verb:18}" + "  ".join(cells) + f"{results[-1].seconds / results[0].seconds:8.1f}   {kinds}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=10_000)
    parser.add_argument("--only", choices=["s3", "file"])
    parser.add_argument("--verbs", nargs="+", choices=list(VERBS), default=list(VERBS))
    parser.add_argument("--verb", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.verb:
        run_verb(*options.verb)
        return
    counts = [10, options.versions]
    with tempfile.TemporaryDirectory(prefix="engineroom-bench-") as text:
        root = Path(text)
        os.environ["ENGINEROOM_CACHE"] = f"{root}/cache"
        if options.only in {None, "file"}:
            compare(f"file://{root}/store", engine_tree(root / "one", 1), counts, options.verbs, None)
        if options.only in {None, "s3"}:
            (root / "server").mkdir()
            metrics = free_port()
            with seaweedfs_server(root / "server", bucket=BUCKET, volume_mb=8192, metrics=metrics) as port:
                os.environ.update(environment(port))
                compare(f"s3://{BUCKET}/store", engine_tree(root / "two", 1), counts, options.verbs, metrics)


if __name__ == "__main__":
    main()
