"""A whole release in one folder, for a cluster without internet: charts, values, images by digest, artifact, checksums.

The folder is filled beside its place and renamed when it is whole. What an interrupted run has left of the artifact is
gone on with.
"""

import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engineroom.artifacts.exporting import export
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.release_values import read_values
from engineroom.deploy.helm import Helm
from engineroom.documents import sync_folder, write_atomic
from engineroom.errors import CommandError, InputError
from engineroom.folders import disk_errors, sync_tree
from engineroom.progress import QUIET, Progress

LOADER = Path(__file__).with_name("offline_load.sh")
ARTIFACT, IMAGES, PINS, SUMS = "artifact.tar", "images.txt", "images-values.yaml", "SHA256SUMS"

#: An image of several GB over a slow line.
COPY_SECONDS = 4 * 3600


@dataclass(frozen=True)
class Bundled:
    """What lies in the folder now."""

    path: Path
    reference: str
    """The artifact, with its digest."""
    images: tuple[str, ...]
    """By digest."""
    carried: bool
    """Whether the images themselves are in it."""
    bytes: int
    files: int


def bundle(
    values: Sequence[Path],
    to: Path,
    *,
    helm: Helm,
    chart: Path,
    release: str,
    more_images: Sequence[str] = (),
    carry_images: bool = False,
    plain_http: bool = False,
    progress: Progress = QUIET,
) -> Bundled:
    """Fill the folder ``to`` with all that ``helm install`` of ``chart`` with ``values`` needs.

    ``more_images`` are listed as well (and carried). Images that the values name by tag are looked up by skopeo, and
    pinned in a values file of the bundle's own.

    Raises InputError where the folder is there, values name no artifact or hold a secret, or an image cannot be
    pinned; CommandError where Helm or skopeo fails; what :func:`engineroom.artifacts.exporting.export` raises.
    """
    to = to.absolute()
    if to.exists():
        raise InputError("it is there already", where=str(to), fix="choose another folder with --to, or remove it")
    texts = [read_values(path) for path in values]
    reference = _artifact([yaml.safe_load(text) for text in texts], values)
    rendered = helm.template(chart, values, release=release)
    pins = {image: _pinned(image, plain_http) for image in dict.fromkeys([*_images(rendered), *more_images])}
    overlay = _overlay(chart, texts, pins)

    staging = to.with_name(f".{to.name}.partial")
    with disk_errors(to):
        for name in ("charts", "values"):
            shutil.rmtree(staging / name, ignore_errors=True)
            (staging / name).mkdir(parents=True)
        helm.package(chart, staging / "charts")
        for number, (path, text) in enumerate(zip(values, texts, strict=True)):
            (staging / "values" / f"{number:02}-{path.name}").write_bytes(text)
        (staging / "values" / f"{len(texts):02}-{PINS}").write_text(overlay)
        (staging / IMAGES).write_text("".join(f"{image}\n" for image in pins.values()))
        shutil.copyfile(LOADER, staging / "load.sh")
        (staging / "load.sh").chmod(0o755)
        (staging / "release.txt").write_text(f"{release}\n{reference}\n")
        # Of an interrupted run with other images.
        for folder in (staging / "images").glob("*"):
            if not carry_images or int(folder.name) >= len(pins):
                shutil.rmtree(folder)
    if carry_images:
        for number, image in enumerate(pins.values()):
            progress.say(f"copying {image}")
            _carry(image, staging / "images" / str(number), plain_http)
    exported = export([Reference.parse(reference)], staging / ARTIFACT, plain_http=plain_http, progress=progress)
    (entry,) = exported.entries
    with disk_errors(to):
        sums = list(_sums(staging, known={ARTIFACT: exported.sha256 or ""}))
        write_atomic(staging / SUMS, "".join(f"{digest}  {name}\n" for digest, name, _ in sums).encode())
        sync_tree(staging, files=True)
        staging.rename(to)
        sync_folder(to.parent)
    images = tuple(pins.values())
    size = sum(size for _, _, size in sums)
    return Bundled(to, f"{reference.partition('@')[0]}@{entry.pointer.digest}", images, carry_images, size, len(sums))


def _artifact(documents: Sequence[Any], values: Sequence[Path]) -> str:
    """``artifact.ref`` of the values; a later file wins."""
    found = ""
    for document in documents:
        section = document.get("artifact") if isinstance(document, dict) else None
        found = section.get("ref") or found if isinstance(section, dict) else found
    if not found:
        raise InputError(
            "no file names an artifact (artifact.ref)",
            where=", ".join(map(str, values)),
            fix="write the values with `engineroom values`",
        )
    return str(Reference.parse(str(found)))


def _images(manifests: str) -> Iterator[str]:
    """Every image of every container in the rendered objects, in their order."""

    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for key, child in value.items():
                if key in ("containers", "initContainers") and isinstance(child, list):
                    yield from (str(item["image"]) for item in child if isinstance(item, dict) and "image" in item)
                yield from walk(child)
        elif isinstance(value, list):
            for child in value:
                yield from walk(child)

    for document in yaml.safe_load_all(manifests):
        yield from walk(document)


def _pinned(image: str, plain_http: bool) -> str:
    """``image`` by digest, without its tag."""
    place, _, digest = image.partition("@")
    name = place if ":" not in place.rpartition("/")[2] else place.rpartition(":")[0]
    if not digest:
        fix = f"name it by digest in the values, or install skopeo, which looks {image} up"
        if shutil.which("skopeo") is None:
            raise InputError("it is named by a tag, which can be moved", where=image, fix=fix)
        digest = _skopeo("inspect", *_tls("", plain_http), "--format", "{{.Digest}}", f"docker://{image}").strip()
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise InputError(f"its digest {digest[:80]!r} is none", where=image, fix="give sha256:HEX")
    return f"{name}@{digest}"


def _overlay(chart: Path, texts: Sequence[bytes], pins: dict[str, str]) -> str:
    """Values that pin each entry of ``images`` which ``pins`` knows, whatever it is called."""
    merged: dict[str, Any] = {}
    for text in [(chart / "values.yaml").read_bytes(), *texts]:
        section = (yaml.safe_load(text) or {}).get("images") or {}
        for name, entry in section.items():
            merged[name] = {**merged.get(name, {}), **entry} if isinstance(entry, dict) else entry
    version = str(yaml.safe_load((chart / "Chart.yaml").read_bytes()).get("appVersion", ""))
    digests = {}
    for name, entry in merged.items():
        if not isinstance(entry, dict) or "repository" not in entry:
            continue
        place = "/".join(filter(None, (merged.get("registry") or entry.get("registry"), entry["repository"])))
        image = f"{place}@{entry['digest']}" if entry.get("digest") else f"{place}:{entry.get('tag') or version}"
        if image in pins:
            digests[name] = {"digest": pins[image].partition("@")[2]}
    header = "# The images of this bundle by digest: a mirror of it has the same ones.\n"
    return header + yaml.safe_dump({"images": digests}, sort_keys=True)


def _carry(image: str, folder: Path, plain_http: bool) -> None:
    """Copy ``image`` into ``folder``, all platforms, every byte as the registry has it."""
    done = folder / "source"  # written last; skopeo reads what the manifest names, and nothing else
    if done.is_file() and done.read_text() == f"{image}\n":
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    flags = ("--quiet", "--preserve-digests", "--all", *_tls("src-", plain_http))
    _skopeo("copy", *flags, f"docker://{image}", f"dir:{folder}")
    done.write_text(f"{image}\n")


def _tls(prefix: str, plain_http: bool) -> tuple[str, ...]:
    return (f"--{prefix}tls-verify=false",) if plain_http else ()


def _skopeo(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["skopeo", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=COPY_SECONDS, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise CommandError(
            "there is no skopeo", where="skopeo", fix="install it: it copies images between registries and folders"
        ) from None
    except subprocess.TimeoutExpired:
        raise CommandError(f"no end after {COPY_SECONDS} s", where=f"skopeo {arguments[0]}") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        found = re.sub(r'^time=.* msg="(.*)"$', r"\1", lines[-1])
        raise CommandError(found, where=f"skopeo {arguments[0]}", tail=tuple(lines[:-1][-20:]))
    return done.stdout


def _sums(folder: Path, *, known: dict[str, str]) -> Iterator[tuple[str, str, int]]:
    """SHA-256, name and size of every file below ``folder``; ``known`` are not read again."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != SUMS:
            with path.open("rb") as file:
                digest = known.get(name) or hashlib.file_digest(file, "sha256").hexdigest()
            yield digest, name, path.stat().st_size
