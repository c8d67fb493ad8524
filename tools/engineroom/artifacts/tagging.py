"""Setting tags, the last step of whatever stores an artifact: ``publish``, ``copy``, ``import`` and ``restore``."""

from engineroom.artifacts.holds import keep_named
from engineroom.artifacts.parallel import Stop, again
from engineroom.artifacts.reference import Reference, is_movable
from engineroom.artifacts.store import Pointer, Store
from engineroom.errors import ArtifactExistsError, StoreError
from engineroom.progress import Progress

_ATTEMPTS = 20


def probe(store: Store, reference: Reference, tag: str | None, *, unsafe: bool, progress: Progress) -> bool:
    """Whether tags are set by conditional writes; refuses the immutable ``tag`` where the store ignores them.

    Raises :class:`StoreError`.
    """
    if not store.has_conditions:
        progress.say(f"{store.root} is a registry: its tags are compared before and after they are set, not locked")
        return True
    if again(store.keeps_conditions, Stop()):
        return True
    if tag and not unsafe:
        raise StoreError(
            f"this store ignores conditional writes, so two publishers could both believe that they made :{tag}",
            where=str(reference),
            fix="use a store that honours If-None-Match (AWS S3, SeaweedFS, versitygw), or pass --unsafe-tags",
        )
    progress.say(f"{store.root} ignores conditional writes: tags are only as safe as one publisher at a time")
    return False


def set_tag(store: Store, reference: Reference, tag: str, pointer: Pointer, *, conditional: bool) -> bool:
    """Let ``tag`` of the reference's name name ``pointer``; True where it did not.

    ``conditional`` is what :func:`probe` found. Raises :class:`ArtifactExistsError` where the tag is immutable and
    names something else.
    """
    if is_movable(tag):
        return _move(store, reference, tag, pointer, conditional=conditional)
    return _set_immutable(store, reference, tag, pointer, conditional=conditional)


def _set_immutable(store: Store, reference: Reference, tag: str, pointer: Pointer, *, conditional: bool) -> bool:
    made = False
    if conditional:
        if store.create_tag(reference.name, tag, pointer):
            return True
    elif store.read_tag(reference.name, tag) is None:
        store.write_tag(reference.name, tag, pointer)
        made = True
    # A create whose answer was lost on the way is repeated by the client and finds itself: equal is success.
    current = store.read_tag(reference.name, tag)
    if current is None or current.pointer != pointer:
        raise taken(reference, current.pointer if current else None)
    return made


def _move(store: Store, reference: Reference, tag: str, pointer: Pointer, *, conditional: bool) -> bool:
    """The last publisher wins, none is half done."""
    for _ in range(_ATTEMPTS):
        current = store.read_tag(reference.name, tag)
        if current and current.pointer == pointer:
            return False
        if current:
            keep_named(store, current.pointer.digest)
        if not conditional:
            store.write_tag(reference.name, tag, pointer)
            return True
        if current is None:
            if store.create_tag(reference.name, tag, pointer):
                return True
        elif store.move_tag(reference.name, tag, pointer, expected=current):
            return True
    raise StoreError(f"the tag {tag} changed {_ATTEMPTS} times while it was moved", where=str(reference), fix="retry")


def taken(reference: Reference, pointer: Pointer | None) -> ArtifactExistsError:
    """The refusal of a tag that names something else."""
    return ArtifactExistsError(
        f"this tag already names {pointer.digest if pointer else 'another artifact'}",
        where=str(reference),
        fix="tags do not change once published: choose a new one, or pull the digest",
    )
