"""The whole pipeline on this machine: recipe → … → an answer from a real Triton, values, rendered manifests."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from engineroom.artifacts.reference import Reference
from engineroom.deploy import helm
from engineroom.deploy.pipeline import Pipeline
from engineroom.deploy.values import make_values
from engineroom.errors import IncompatibleError
from engineroom.repository.record import BuildRecord
from engineroom.serving.answer import Answer, Prompt


@dataclass
class Step:
    """One line of the summary."""

    stage: str
    seconds: float
    result: str
    cached: bool = False


@dataclass
class LocalRun:
    """Runs the stages one after the other and remembers what each did."""

    stages: Pipeline
    question: str
    max_tokens: int = 128
    show: Callable[[Answer], object] = list
    steps: list[Step] = field(default_factory=list)
    answer: str = ""
    reference: str = ""

    def run(self, helm_program: str | None = None) -> None:
        """All stages. Raises what they raise; what was done until then stays in the work folder."""
        work = self.stages.work
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
            step.cached, step.result = self._publish_and_pull(record)
        with self._step("answer") as step:
            step.result = self._serve_and_ask(record)
        with self._step("values") as step:
            values = make_values(record, plan, self.stages.recipe.gpu_class, reference=self.reference)
            work.save_text(work.values, values.to_yaml())
            step.result = str(work.values)
        with self._step("manifests") as step:
            program = helm.find(helm_program, cache=self.stages.cache)
            manifests = program.template(helm.chart_folder(), [work.values], release=release_name(record.name))
            work.save_text(work.manifests, manifests)
            step.result = f"{work.manifests}, rendered by Helm {program.version()}"

    def _publish_and_pull(self, record: BuildRecord) -> tuple[bool, str]:
        from engineroom.artifacts.publish import publish
        from engineroom.artifacts.pull import pull
        from engineroom.artifacts.store import open_store

        work, progress = self.stages.work, self.stages.progress
        reference = Reference.parse(local_reference(self.stages, record))
        store = open_store(reference)
        published = publish(work.tree, reference, store=store, progress=progress)
        self.reference = str(published.reference)
        pulled = pull(published.reference, work.served, store=store, progress=progress)
        return published.already_published and pulled.already_there, self.reference

    def _serve_and_ask(self, record: BuildRecord) -> str:
        from engineroom.serving.chat import render_chat
        from engineroom.serving.client import ask
        from engineroom.serving.server import TritonServer
        from engineroom.serving.tree import find_program

        if record.inputs.runtime != "ctranslate2":
            raise IncompatibleError(
                f"the runtime {record.inputs.runtime} does not run here without its image",
                where="up --local",
                fix="use --gpu cpu --runtime ctranslate2 here, or `helm install` with the values on a cluster",
            )
        work, progress = self.stages.work, self.stages.progress
        program = find_program(self.stages.cache, progress=progress)
        with TritonServer.of_tree(work.served, program) as server:
            with progress.task("load the model in Triton", None, unit=""):
                server.start()
            chat = record.model.chat_template is not None
            text = render_chat(record, [{"role": "user", "content": self.question}]) if chat else self.question
            prompt = Prompt(text, max_tokens=self.max_tokens, add_special_tokens=False if chat else None)
            answer = ask(server.address, record.model.client_model, prompt)
            self.show(answer)
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


def local_reference(stages: Pipeline, record: BuildRecord) -> str:
    """Where to publish: the recipe's ``publish.to``, else a store in the work folder, tagged by engine key only."""
    if stages.recipe.publish:
        return stages.recipe.publish.to
    return f"file://{stages.work.store.absolute()}/{release_name(record.name)}:key-{record.key}"


def release_name(name: str) -> str:
    """``name`` as a DNS label, for a Helm release and the last segment of a reference."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    return label or "model"
