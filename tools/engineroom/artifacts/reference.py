"""Names of artifacts: ``SCHEME://LOCATION/NAME[:TAG][@sha256:HEX]``, parsed strictly.

NAME is the last part of the path and LOCATION, everything before it, is the store's root: one store holds
many names, which share their blobs. In a registry (``oci://``) LOCATION is the host, and NAME the whole path of the
repository. NAME and TAG follow the grammar of OCI registries, so that what is published into a folder or a bucket
can be copied into a registry under the same name.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from engineroom.errors import BadReferenceError

#: Schemes whose stores exist here.
SCHEMES = ("file", "s3", "gs", "az", "oci")

#: Tags that are pointers: they move to the newest artifact. All other tags name one artifact for ever.
MOVABLE_PREFIXES = ("key-", "recipe-")

# https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pulling-manifests
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
# Google's buckets may have "_" as well (https://cloud.google.com/storage/docs/buckets#naming), Azure's containers
# have neither "_" nor "." (https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata).
_BUCKETS = {
    "s3": (
        re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"),
        "a bucket has 3 to 63 lower-case letters, digits, '-' and '.'",
    ),
    "gs": (
        re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]"),
        "a bucket has 3 to 63 lower-case letters, digits, '-', '_' and '.'",
    ),
    "az": (
        re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]"),
        "a container has 3 to 63 lower-case letters, digits and '-'",
    ),
}
_HOST = re.compile(r"(?:\[[0-9a-f:]+\]|[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::[0-9]{1,5})?")
_MAX_NAME = 128
#: Of a whole repository path: https://github.com/distribution/reference, NameTotalLengthMax, which counts the host.
_MAX_REPOSITORY = 255

_SHAPE = "write SCHEME://LOCATION/NAME[:TAG][@sha256:HEX], such as s3://bucket/models/llama:v1"


def is_movable(tag: str) -> bool:
    """Whether ``tag`` is a pointer that moves to newer artifacts (``key-…``, ``recipe-…``)."""
    return tag.startswith(MOVABLE_PREFIXES)


@dataclass(frozen=True)
class Reference:
    """Where an artifact lies. ``str()`` gives back what :meth:`parse` reads."""

    scheme: str
    """One of :data:`SCHEMES`."""

    location: str
    """Root of the store: an absolute folder, ``bucket[/prefix]``, or a registry's ``host[:port]``."""

    name: str
    tag: str | None = None
    digest: str | None = None
    """``sha256:`` and 64 hexadecimal digits: of the manifest."""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.root}/{self.name}{tag}{digest}"

    @property
    def root(self) -> str:
        """The store that holds the artifact, as :func:`parse_root` reads it."""
        return f"{self.scheme}://{self.location}"

    def pinned(self, digest: str) -> "Reference":
        """This reference with the digest that it was found to name."""
        return replace(self, digest=digest)

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Read a reference; relative folders (``file://./…``, ``file://../…``) are taken from the working folder.

        Raises:
            BadReferenceError: with the part that is wrong and what to write instead.
        """
        scheme, rest = _split_scheme(text)
        if scheme == "oci":
            return _in_registry(rest, text)
        head, slash, last = rest.rpartition("/")
        # A tag has no "/", but a digest could have been cut from its name by hand: "a/b@sha256:…/c".
        if not slash or not last:
            raise BadReferenceError("it has no name after its location", where=text, fix=_SHAPE)
        name, tag, digest = _split_name(last, text)
        if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
            raise BadReferenceError(
                f"{name!r} is no artifact name",
                where=text,
                fix=f"a name has up to {_MAX_NAME} lower-case letters and digits, joined by '.', '_' or '-'",
            )
        return cls(scheme, _location(scheme, head, text), name, tag, digest)


def is_tag(text: str) -> bool:
    """Whether ``text`` can be a tag."""
    return bool(_TAG.fullmatch(text))


def has_tag_or_digest(text: str) -> bool:
    """Whether ``text`` ends as a reference to one artifact does; a port of a registry is no tag."""
    rest = text.partition("://")[2]
    if text.startswith("oci://"):
        rest = rest.partition("/")[2]
    return any(mark in rest.rpartition("/")[2] for mark in ":@")


def parse_root(text: str) -> tuple[str, str]:
    """Scheme and location of a store's root, ``SCHEME://LOCATION``. Raises :class:`BadReferenceError`."""
    scheme, rest = _split_scheme(text)
    return scheme, _location(scheme, rest.removesuffix("/") if len(rest) > 1 else rest, text)


def _split_scheme(text: str) -> tuple[str, str]:
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise BadReferenceError("it has no scheme", where=text or "the reference", fix=_SHAPE)
    if scheme not in SCHEMES:
        known = ", ".join(f"{known}://" for known in SCHEMES)
        raise BadReferenceError(f"the scheme {scheme!r} is unknown", where=text, fix=f"known are {known}")
    return scheme, rest


def _split_name(last: str, text: str) -> tuple[str, str | None, str | None]:
    """Name, tag and digest of ``NAME[:TAG][@sha256:HEX]``; the name is not looked at."""
    last, at, digest = last.partition("@")
    name, colon, tag = last.partition(":")
    if at and not _DIGEST.fullmatch(digest):
        raise BadReferenceError(
            f"{digest!r} is no digest", where=text, fix="write @sha256: and 64 hexadecimal digits in lower case"
        )
    if colon and not _TAG.fullmatch(tag):
        raise BadReferenceError(
            f"{tag!r} is no tag",
            where=text,
            fix="a tag has 1 to 128 letters, digits, '_', '.' and '-', and does not begin with '.' or '-'",
        )
    return name, tag or None, digest or None


def _in_registry(rest: str, text: str) -> Reference:
    host, slash, path = rest.partition("/")
    if not slash or not path:
        raise BadReferenceError(
            "it has no repository after its host", where=text, fix="write oci://HOST[:PORT]/NAME[:TAG][@sha256:HEX]"
        )
    name, tag, digest = _split_name(path, text)
    if len(host) + 1 + len(name) > _MAX_REPOSITORY or not all(_NAME.fullmatch(part) for part in name.split("/")):
        raise BadReferenceError(
            f"{name!r} is no repository of a registry",
            where=text,
            fix="its parts between '/' have lower-case letters and digits, joined by '.', '_' or '-', "
            f"and host and repository up to {_MAX_REPOSITORY} characters",
        )
    return Reference("oci", _location("oci", host, text), name, tag, digest)


def _location(scheme: str, location: str, text: str) -> str:
    if not location:
        raise BadReferenceError("it has no location", where=text, fix=_SHAPE)
    if scheme == "file":
        return _folder(location, text)
    if scheme == "oci":
        if not _HOST.fullmatch(location):
            raise BadReferenceError(
                f"{location!r} is no registry", where=text, fix="write oci://HOST[:PORT], the host in lower case"
            )
        return location
    bucket, *prefix = location.split("/")
    pattern, rule = _BUCKETS[scheme]
    if not pattern.fullmatch(bucket):
        raise BadReferenceError(
            f"{bucket!r} is no {'container' if scheme == 'az' else 'bucket'} name", where=text, fix=rule
        )
    _check_parts(prefix, text)
    return location


def _folder(location: str, text: str) -> str:
    """The absolute folder behind the location of a ``file://`` reference."""
    parts = location.split("/")
    if parts[0] in {".", ".."}:
        upwards = 0
        while upwards < len(parts) and parts[upwards] in {".", ".."}:
            upwards += 1
        _check_parts(parts[upwards:], text)
        # Links stay links (`absolute`, not `resolve`), only the leading "./" and "../" of the user go.
        base = Path.cwd()
        for part in parts[:upwards]:
            base = base.parent if part == ".." else base
        location = base.joinpath(*parts[upwards:]).as_posix()
        parts = location.split("/")
    elif parts[0]:
        raise BadReferenceError(
            f"{location!r} is no absolute folder", where=text, fix="write file:///folder/… or file://./folder/…"
        )
    if len(parts) < 2 or not parts[1]:
        raise BadReferenceError("a store cannot be the root folder", where=text, fix="name a folder below it")
    _check_parts(parts[1:], text)
    return location


def _check_parts(parts: list[str], text: str) -> None:
    for part in parts:
        if part == "":
            raise BadReferenceError("its path has an empty part", where=text, fix="write single slashes")
        if part in {".", ".."}:
            raise BadReferenceError(f"its path climbs with {part!r}", where=text, fix="write the path out")
        if wrong := sorted({character for character in part if character in "\\?#%:@" or not character.isprintable()}):
            shown = " ".join(repr(character) for character in wrong)
            raise BadReferenceError(
                f"its path has {shown}", where=text, fix="use a path without backslashes, '%', '?', '#', ':' and '@'"
            )
