"""Which store a reference lies in: the one place where the kinds of stores are named."""

from engineroom.artifacts.reference import Reference, parse_root
from engineroom.artifacts.store import Store


def open_store(place: Reference | str) -> Store:
    """The store of a reference, or of a root ``SCHEME://LOCATION``.

    Text with a tag or a digest is read as a reference, all other text as a root. Opening touches nothing.
    Raises :class:`BadReferenceError`; :class:`StoreError` where the settings of a bucket are incomplete.
    """
    if isinstance(place, str) and any(mark in place.rpartition("/")[2] for mark in ":@"):
        place = Reference.parse(place)
    scheme, location = (place.scheme, place.location) if isinstance(place, Reference) else parse_root(place)
    if scheme == "file":
        from engineroom.artifacts.folder import FolderStore

        return FolderStore(location)
    from engineroom.artifacts.bucket import BucketStore

    return BucketStore.from_environment(location)
