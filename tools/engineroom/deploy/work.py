"""The work folder: what the stages of one recipe leave for each other."""

import errno
import os
from pathlib import Path

from engineroom.checkpoint import record as checkpoint_record
from engineroom.checkpoint.record import CheckpointRecord
from engineroom.documents import write_atomic
from engineroom.engines import engine as engine_document
from engineroom.engines.engine import Engine
from engineroom.errors import InputError, StoreError
from engineroom.planning import plan as plan_document
from engineroom.planning.plan import Plan
from engineroom.repository import record as build_record
from engineroom.repository.record import BuildRecord

#: Its name, beside the recipe.
WORK = ".engineroom"


class Work:
    """Paths and documents of one work folder. Reading says which verb to run when a document is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = folder / "checkpoint"
        """A link to the checkpoint: in the cache, or the user's own folder."""
        self._requested = folder / "checkpoint.source"
        self.engine = folder / "engine"
        """A link to the cache's engine folder."""
        self.tree = folder / "repository"
        """The assembled tree."""
        self.store = folder / "store"
        """The store that is published to where the recipe names none."""
        self.served = folder / "served"
        """The tree as it was pulled: what ``up --local`` serves."""
        self.values = folder / "values.yaml"
        self.manifests = folder / "manifests.yaml"

    def checkpoint_record(self) -> CheckpointRecord:
        """What ``fetch`` wrote. Raises DocumentError."""
        return CheckpointRecord.read(self.folder / checkpoint_record.FILE, made_by="engineroom fetch")

    def plan(self) -> Plan:
        """What ``plan`` wrote. Raises DocumentError."""
        return Plan.read(self.folder / plan_document.FILE, made_by="engineroom plan")

    def engine_record(self) -> Engine:
        """What ``build`` wrote. Raises DocumentError."""
        return Engine.read(self.engine / engine_document.FILE, made_by="engineroom build")

    def build_record(self) -> BuildRecord:
        """What ``assemble`` wrote. Raises DocumentError."""
        return BuildRecord.read(self.tree / build_record.FILE, made_by="engineroom assemble")

    def requested(self) -> str:
        """The source that ``fetch`` was asked for; empty when it has not run."""
        try:
            return self._requested.read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    def save_checkpoint(self, record: CheckpointRecord, folder: Path, *, requested: str) -> None:
        """Remember where the checkpoint lies, and for which source: a Hub may answer under a new name."""
        # First, so that a fetch that is cut off between the two files is not taken for one of this source.
        self._save(self._requested, b"")
        self._link(self.checkpoint, folder)
        self._save(self.folder / checkpoint_record.FILE, record.to_json() + b"\n")
        self._save(self._requested, f"{requested}\n".encode())

    def save_plan(self, plan: Plan) -> None:
        """Write ``plan.json``."""
        self._save(self.folder / plan_document.FILE, plan.to_json() + b"\n")

    def save_engine(self, folder: Path) -> None:
        """Remember where the engine lies."""
        self._link(self.engine, folder)

    def save_text(self, path: Path, text: str) -> None:
        """Write one of the folder's text files."""
        self._save(path, text.encode())

    def _save(self, path: Path, data: bytes) -> None:
        try:
            write_atomic(path, data)
        except OSError as error:
            raise _cannot_write(path, error) from None

    def _link(self, link: Path, target: Path) -> None:
        if os.path.lexists(link) and not link.is_symlink():
            raise InputError("it is in the way: a link is made there", where=str(link), fix="move it, or choose --work")
        fresh = link.with_name(f".{link.name}.new")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(target.resolve())
            fresh.replace(link)
        except OSError as error:
            raise _cannot_write(link, error) from None


def _cannot_write(path: Path, error: OSError) -> StoreError:
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    return StoreError(
        f"cannot write it ({error.strerror or error})",
        where=str(path),
        fix="free some space" if full else "choose a folder that you may write (--work)",
    )
