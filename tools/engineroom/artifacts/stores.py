"""Which store a reference lies in: the one place where the kinds of stores are named."""

from engineroom.artifacts.reference import Reference, has_tag_or_digest, parse_root
from engineroom.artifacts.store import Store


def open_store(place: Reference | str, *, plain_http: bool = False) -> Store:
    """The store of a reference, or of a root ``SCHEME://LOCATION``.

    Text with a tag or a digest is read as a reference, all other text as a root. Opening touches nothing.
    ``plain_http`` talks to a registry without TLS, which is done with one on this machine anyway.
    Raises :class:`BadReferenceError`; :class:`StoreError` where the settings of a bucket are incomplete.
    """
    if isinstance(place, str) and has_tag_or_digest(place):
        place = Reference.parse(place)
    scheme, location = (place.scheme, place.location) if isinstance(place, Reference) else parse_root(place)
    if scheme == "file":
        from engineroom.artifacts.folder import FolderStore

        return FolderStore(location)
    if scheme == "oci":
        from engineroom.artifacts.registry import RegistryStore

        return RegistryStore(location, place.name if isinstance(place, Reference) else None, plain_http=plain_http)
    from engineroom.artifacts.bucket import BucketStore

    return BucketStore.from_environment(scheme, location)
