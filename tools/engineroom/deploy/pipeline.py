"""The stages from recipe to assembled model repository, each reading what the one before it left in the work folder."""

from dataclasses import dataclass
from pathlib import Path

from engineroom.checkpoint.fetch import Fetched
from engineroom.checkpoint.record import CheckpointRecord, record_checkpoint
from engineroom.checkpoint.shape import read_shape
from engineroom.checkpoint.source import LocalSource, parse_source
from engineroom.deploy.work import Work
from engineroom.engines.builder import Builder, BuildRequest
from engineroom.engines.cache import Built
from engineroom.errors import DocumentError
from engineroom.gpus import Runtime
from engineroom.planning.plan import Plan
from engineroom.planning.replica import make_plan
from engineroom.progress import Progress
from engineroom.recipe import Recipe
from engineroom.repository.record import BuildRecord


@dataclass(frozen=True)
class Pipeline:
    """One recipe on its way. Every method is one stage: it reads from ``work`` and writes to ``work``."""

    recipe: Recipe
    work: Work
    cache: Path
    progress: Progress

    def fetch(self) -> Fetched:
        """Bring the checkpoint here. Raises InputError, HubError, StoreError."""
        from engineroom.checkpoint.fetch import fetch

        fetched = fetch(self.recipe.model.source, self.recipe.model.revision, cache=self.cache, progress=self.progress)
        self.work.save_checkpoint(fetched.record, fetched.folder, requested=self._source())
        return fetched

    def plan(self) -> Plan:
        """Plan one replica. Raises RecipeError, CheckpointError, DoesNotFitError."""
        plan = self._planned()
        self.work.save_plan(plan)
        return plan

    def build(self, published: str | None = None) -> Built:
        """Build the engine, or find it: in the cache, or in the store ``published`` (SCHEME://LOCATION/NAME).

        Raises what the builder raises, BadReferenceError, ArtifactCorruptError, StoreError.
        """
        from engineroom.engines import cache

        request = self._planned_request()
        if published is not None:
            from engineroom.deploy.published import take_engine

            take_engine(
                builder_for(self.recipe.runtime).inputs(request), published, cache=self.cache, progress=self.progress
            )
        built = cache.build(request, builder_for(self.recipe.runtime), cache=self.cache, progress=self.progress)
        self.work.save_engine(built.folder)
        return built

    def assemble(self) -> BuildRecord:
        """Lay out the model repository. Raises InputError, CheckpointError, StoreError."""
        from engineroom.repository.assemble import assemble

        request, engine = self._planned_request(), self.work.engine_record()
        if engine.inputs != builder_for(self.recipe.runtime).inputs(request):
            raise DocumentError(
                "the engine is of another recipe or checkpoint",
                where=str(self.work.engine),
                fix="run `engineroom build` again",
            )
        return assemble(
            self.recipe,
            request.plan,
            engine,
            self.work.engine,
            request.record,
            self.work.checkpoint,
            self.work.tree,
            self.progress,
        )

    def request(self) -> BuildRequest:
        """What builders are given, planned from the checkpoint in the work folder."""
        return BuildRequest(self.recipe, self._planned(), self._record(), self.work.checkpoint)

    def sketch(self) -> BuildRequest:
        """A request for a dry run from a bare ``config.json``: nothing is fetched, nothing is hashed but it.

        Raises CheckpointError where the recipe names no local folder.
        """
        source = parse_source(self.recipe.model.source, self.recipe.model.revision)
        if not isinstance(source, LocalSource):
            return self.request()
        folder = source.folder
        record = record_checkpoint(
            folder, source=str(folder), revision="local", architecture=read_shape(folder).architecture
        )
        return BuildRequest(self.recipe, make_plan(self.recipe, record, folder), record, folder)

    def assembled(self) -> tuple[BuildRecord, Plan]:
        """What ``assemble`` and ``plan`` left, where it is of this recipe. Raises DocumentError."""
        record, request = self.work.build_record(), self._planned_request()
        served = (record.model.max_input_len, record.model.max_seq_len)
        limits = request.plan.limits
        if record.inputs != builder_for(self.recipe.runtime).inputs(request) or served != (
            limits.max_input_len,
            limits.max_seq_len,
        ):
            raise DocumentError(
                "the model repository is of another recipe or checkpoint",
                where=str(self.work.tree),
                fix="run `engineroom build` and `engineroom assemble` again",
            )
        return record, request.plan

    def _planned_request(self) -> BuildRequest:
        """The request, where ``plan.json`` is of this recipe: stages after it build on what the user has seen."""
        request = self.request()
        if request.plan != self.work.plan():
            raise DocumentError(
                "plan.json is of another recipe or checkpoint",
                where=str(self.work.folder),
                fix="run `engineroom plan` again",
            )
        return request

    def _planned(self) -> Plan:
        return make_plan(self.recipe, self._record(), self.work.checkpoint)

    def _record(self) -> CheckpointRecord:
        record = self.work.checkpoint_record()
        if (requested := self.work.requested()) != self._source():
            raise DocumentError(
                f"it is the checkpoint of {requested or 'an interrupted fetch'}, but the recipe names {self._source()}",
                where=str(self.work.folder / "checkpoint.json"),
                fix="run `engineroom fetch`",
            )
        return record

    def _source(self) -> str:
        return str(parse_source(self.recipe.model.source, self.recipe.model.revision))


def builder_for(runtime: Runtime) -> Builder:
    """The builder of a runtime."""
    match runtime:
        case "ctranslate2":
            from engineroom.engines.ctranslate2 import CTranslate2Builder

            return CTranslate2Builder()
        case "tensorrt":
            from engineroom.engines.tensorrt import TensorrtBuilder

            return TensorrtBuilder()
        case "pytorch":
            from engineroom.engines.pytorch import PytorchBuilder

            return PytorchBuilder()
