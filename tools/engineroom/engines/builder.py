"""What a builder is: one interface, one module for each runtime beside this one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engineroom.checkpoint.record import CheckpointRecord
from engineroom.engines.engine import EngineInputs, Requires
from engineroom.planning.plan import Plan
from engineroom.progress import Progress
from engineroom.recipe import Recipe


@dataclass(frozen=True)
class BuildRequest:
    """What every builder is given."""

    recipe: Recipe
    plan: Plan
    record: CheckpointRecord
    checkpoint: Path
    """Folder of the checkpoint that ``record`` describes."""


class Builder(Protocol):
    """Turns a checkpoint into an engine. Stateless: all state is in the request and on disk."""

    def inputs(self, request: BuildRequest) -> EngineInputs:
        """Everything that decides what the engine will be; cheap, nothing is built."""

    def requires(self, request: BuildRequest) -> Requires:
        """What the engine will need of the place where it runs."""

    def script(self, request: BuildRequest, *, output: Path) -> str:
        """A runnable shell script that does what :meth:`build` does: what ``--dry-run`` prints."""

    def build(self, request: BuildRequest, *, output: Path, progress: Progress) -> dict[str, Any]:
        """Write the engine's files into the empty folder ``output``; returns provenance.

        Raises InputError where the checkpoint cannot be built, CommandError where a tool fails or is missing.
        """
