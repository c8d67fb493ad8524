"""All stages, one after the other: recipe → … → artifact → (an answer from a Triton here) → values, manifests."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from engineroom.artifacts.reference import Reference, is_movable
from engineroom.deploy import helm
from engineroom.deploy.pipeline import Pipeline
from engineroom.deploy.values import make_values
from engineroom.errors import IncompatibleError, InputError
from engineroom.repository.record import BuildRecord
from engineroom.serving.answer import Answer, Prompt

if TYPE_CHECKING:
    from engineroom.serving.server import TritonServer


@dataclass
class Step:
    """One line of the summary."""

    stage: str
    seconds: float
    result: str
    cached: bool = False


@dataclass
class Question:
    """What the served model is asked, and who sees the answer come."""

    text: str
    max_tokens: int = 128
    show: Callable[[Answer], object] = list


@dataclass
class Up:
    """Runs the stages and remembers what each did."""

    stages: Pipeline
    question: Question | None = None
    """Pull the artifact, serve it here and ask; None: stop at what a cluster needs."""
    steps: list[Step] = field(default_factory=list)
    answer: str = ""
    reference: str = ""
    server: "TritonServer | None" = None
    """The one that answered, where :meth:`run` was asked to keep it."""

    def run(self, helm_program: str | None = None, *, keep: ExitStack | None = None) -> None:
        """All stages. Raises what they raise; what was done until then stays in the work folder.

        The server that answers is stopped, or entered into ``keep``.
        """
        work, recipe = self.stages.work, self.stages.recipe
        self._check()
        with self._step("checkpoint") as step:
            fetched = self.stages.fetch()
            step.cached, step.result = bool(fetched.hit), f"{fetched.record.source} at {fetched.record.revision}"
        with self._step("plan") as step:
            plan = self.stages.plan()
            step.result = f"{plan.gpu}, {plan.world_size} rank(s), {plan.kv_tokens:,} tokens of KV cache"
        with self._step("engine") as step:
            built = self.stages.build()
            step.cached, step.result = built.hit, f"{built.engine.inputs.runtime} {plan.precision}, {built.reason}"
            self.stages.progress.say(f"engine {'found' if built.hit else 'built'}: {built.reason}")
        with self._step("model repository") as step:
            record = self.stages.assemble()
            step.result = f"{len(record.files)} files, client model {record.model.client_model}"
        with self._step("artifact") as step:
            step.cached, step.result = self._publish(record)
        if self.question:
            with self._step("answer") as step:
                step.result = self._serve_and_ask(record, self.question, keep)
        with self._step("values") as step:
            values = make_values(record, plan, recipe.gpu_class, reference=self.reference)
            work.save_text(work.values, values.to_yaml())
            step.result = str(work.values)
        with self._step("manifests") as step:
            program = helm.find(helm_program, cache=self.stages.cache)
            manifests = program.template(helm.chart_folder(), [work.values], release=release_name(record.name))
            work.save_text(work.manifests, manifests)
            step.result = f"{work.manifests}, rendered by Helm {program.version()}"

    def _check(self) -> None:
        """Refuse before anything is fetched or built what can be refused then."""
        recipe = self.stages.recipe
        if recipe.publish:
            Reference.parse(recipe.publish.to)
        elif self.question is None:
            raise InputError(
                "there is no place to publish to", where="publish.to", fix="name one, or stay here with --local"
            )
        if self.question and recipe.runtime != "ctranslate2":
            raise IncompatibleError(
                f"the runtime {recipe.runtime} does not run here without its image",
                where="up --local",
                fix="give --gpu cpu --runtime ctranslate2 --precision int8, or publish for a cluster without --local",
            )

    def _publish(self, record: BuildRecord) -> tuple[bool, str]:
        from engineroom.artifacts.publish import publish
        from engineroom.artifacts.pull import pull
        from engineroom.artifacts.stores import open_store

        work, progress = self.stages.work, self.stages.progress
        reference = Reference.parse(target_reference(self.stages, record))
        store = open_store(reference)
        published = publish(work.tree, reference, store=store, progress=progress)
        # A tag that moves says nothing beside the digest.
        moves = is_movable(reference.tag or "")
        self.reference = str(replace(published.reference, tag=None) if moves else published.reference)
        sent = "all there" if published.already_published else f"{published.uploaded_blobs} blobs sent"
        result = f"{published.files} files, {sent}"
        if self.question is None:
            return published.already_published, result
        pulled = pull(published.reference, work.served, store=store, progress=progress)
        return published.already_published and pulled.already_there, result

    def _serve_and_ask(self, record: BuildRecord, question: Question, keep: ExitStack | None) -> str:
        from engineroom.serving.chat import render_chat
        from engineroom.serving.client import ask
        from engineroom.serving.server import TritonServer
        from engineroom.serving.tree import find_program

        work, progress = self.stages.work, self.stages.progress
        program = find_program(self.stages.cache, progress=progress)
        with ExitStack() as stack:
            server = (keep or stack).enter_context(TritonServer.of_tree(work.served, program))
            self.server = server if keep else None
            with progress.task("load the model in Triton", None, unit=""):
                server.start()
            chat = record.model.chat_template is not None
            text = render_chat(record, [{"role": "user", "content": question.text}]) if chat else question.text
            prompt = Prompt(text, max_tokens=question.max_tokens, add_special_tokens=False if chat else None)
            answer = ask(server.address, record.model.client_model, prompt)
            question.show(answer)
            self.answer = answer.text
            ttft = answer.summary.ttft_seconds or 0
            return f"{answer.summary.tokens} tokens, the first after {ttft * 1000:,.0f} ms"

    @contextmanager
    def _step(self, stage: str) -> Iterator[Step]:
        step = Step(stage, 0, "")
        start = time.monotonic()
        yield step
        step.seconds = time.monotonic() - start
        self.steps.append(step)


def target_reference(stages: Pipeline, record: BuildRecord) -> str:
    """Where to publish: the recipe's ``publish.to``, else a store in the work folder, tagged by engine key only."""
    if stages.recipe.publish:
        return stages.recipe.publish.to
    return f"file://{stages.work.store.absolute()}/{release_name(record.name)}:key-{record.key}"


def release_name(name: str) -> str:
    """``name`` as a DNS label, for a Helm release and the last segment of a reference."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    return label or "model"
