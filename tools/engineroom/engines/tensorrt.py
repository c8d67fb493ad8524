"""Engines for TensorRT-LLM's C++ backend: convert or quantise, then compile, inside the pinned image.

TensorRT-LLM is never imported (outside its image only stubs install): the commands of
:mod:`engineroom.engines.tensorrt_commands` are printed as a script, or run where the tools are.
"""

import json
import os
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engineroom import gpus
from engineroom.engines import tensorrt_commands as commands
from engineroom.engines.builder import BuildRequest
from engineroom.engines.engine import EngineInputs, Requires
from engineroom.engines.tensorrt_process import run
from engineroom.engines.tensorrt_versions import PINNED, Stack
from engineroom.errors import CommandError, InputError
from engineroom.planning.plan import Plan
from engineroom.planning.replica import has_weights, parameters_source
from engineroom.progress import Progress


@dataclass(frozen=True)
class _Places:
    """Where one build reads and writes; absolute, so that they mean the same inside a container."""

    model: Path
    output: Path
    scratch: Path
    """Beside the output and on its disk: the TensorRT-LLM checkpoint is as large as the engine."""
    timing: Path
    """Kernel times, kept from build to build. Valid for one SM and TensorRT version, and named so."""

    @property
    def checkpoint(self) -> Path:
        return self.scratch / "checkpoint"

    @property
    def new_timing(self) -> Path:
        return self.scratch / "timing.cache"


class TensorrtBuilder:
    """Builds engines with the tools of one image; implements :class:`~engineroom.engines.builder.Builder`."""

    def __init__(self, stack: Stack = PINNED, *, examples: Path = commands.EXAMPLES) -> None:
        self._stack = stack
        self._examples = examples

    def inputs(self, request: BuildRequest) -> EngineInputs:
        """What the engine is made of: its key. Raises InputError where there can be no such engine."""
        plan = request.plan
        commands.check_buildable(plan)
        gpu = gpus.find(plan.gpu)
        versions = {"trtllm": self._stack.trtllm, "tensorrt": self._stack.tensorrt}
        if commands.uses_quantize(plan):
            versions["modelopt"] = self._stack.modelopt
        return EngineInputs(
            checkpoint=request.record.digest,
            runtime="tensorrt",
            versions=versions,
            image=self._stack.image,
            precision=plan.precision,
            kv=plan.kv_dtype,
            tp=plan.tp,
            pp=plan.pp,
            ep=plan.ep,
            limits=commands.limits(plan),
            plugins=commands.plugins(plan),
            calibration=commands.calibration(plan),
            gpu={"sm": gpu.sm or "", "product": gpu.product},
        )

    def requires(self, request: BuildRequest) -> Requires:
        """Exact SM, TensorRT and TensorRT-LLM; as many ranks as the engine has files."""
        plan = request.plan
        return Requires(
            sm=gpus.find(plan.gpu).sm,
            driver_min=self._stack.driver,
            trtllm=self._stack.trtllm,
            tensorrt=self._stack.tensorrt,
            world_size=plan.world_size,
            shm_bytes=plan.pod.shm_bytes,
        )

    def script(self, request: BuildRequest, *, output: Path) -> str:
        """The commands as a bash script for the pinned image. Raises InputError where there can be no such engine."""
        plan = request.plan
        commands.check_buildable(plan)
        places = self._places(request, output)
        first, second = self._commands(plan, places, timing_input=None)
        lines = [
            "#!/usr/bin/env bash",
            *(f"# {_one_line(line)}".rstrip() for line in self._about(request, places)),
            "set -euo pipefail",
            "",
            f"timing_cache={shlex.quote(str(places.timing))}",
            "reuse_timing=()",
            'if [[ -f "$timing_cache" ]]; then reuse_timing=(--input_timing_cache "$timing_cache"); fi',
            "",
            f"mkdir -p -- {shlex.quote(str(places.checkpoint))} {shlex.quote(str(places.output))}",
            f"trap {shlex.quote('rm -rf -- ' + shlex.quote(str(places.scratch)))} EXIT",
            f"cd -- {shlex.quote(str(places.scratch))}",
            "",
            f"# 1. {first.title}",
            _layout(first.argv),
            "",
            f"# 2. {second.title}",
            _layout(second.argv, '"${reuse_timing[@]}"'),
            "",
            "# Kernel times make the next build on this class of GPU shorter.",
            f'mv -f -- {shlex.quote(str(places.new_timing))} "$timing_cache"',
        ]
        return "\n".join(lines) + "\n"

    def build(self, request: BuildRequest, *, output: Path, progress: Progress) -> dict[str, Any]:
        """Run the commands where the tools are; raises CommandError with the container command where not."""
        plan = request.plan
        commands.check_buildable(plan)
        if not has_weights(request.record):
            raise InputError(
                "there are no weights to build from",
                where=str(request.checkpoint),
                fix="fetch the checkpoint, or use --dry-run to see the commands",
            )
        places = self._places(request, output)
        timing_input = places.timing if places.timing.is_file() else None
        steps = self._commands(plan, places, timing_input=timing_input)
        self._check_tools(steps, places)
        seconds: dict[str, float] = {}
        places.checkpoint.mkdir(parents=True, exist_ok=True)
        places.output.mkdir(parents=True, exist_ok=True)
        try:
            for step in steps:
                progress.say(f"{step.title}: {shlex.join(step.argv)}")
                started = time.monotonic()
                run(step.argv, tool=step.tool, folder=places.scratch, progress=progress)
                seconds[step.tool] = round(time.monotonic() - started, 1)
                if step is steps[0]:
                    _check_kv_type(plan, places.checkpoint, tool=step.tool)
            self._check_engine(plan, places.output)
            if places.new_timing.is_file():
                places.new_timing.replace(places.timing)
        finally:
            shutil.rmtree(places.scratch, ignore_errors=True)
        return {
            "commands": [shlex.join(step.argv) for step in steps],
            "seconds": seconds,
            "parameters": f"{plan.parameters}, {parameters_source(request.record)}",
            "timing_cache_reused": timing_input is not None,
        }

    def container_command(self, request: BuildRequest, *, output: Path) -> str:
        """The command that runs the script of ``--dry-run``, given on standard input, in the pinned image."""
        return self._container_command(self._places(request, output))

    def _container_command(self, places: _Places) -> str:
        mounts = [f"{places.model}:{places.model}:ro", f"{places.output.parent}:{places.output.parent}"]
        words = ["docker", "run", "--rm", "--gpus", "all", "--ipc", "host"]
        words += ["--ulimit", "memlock=-1", "--ulimit", "stack=67108864", "-i"]
        words += [word for mount in mounts for word in ("-v", mount)]
        return shlex.join([*words, self._stack.image, "bash", "-s"])

    def _places(self, request: BuildRequest, output: Path) -> _Places:
        output = Path(os.path.abspath(output))  # noqa: PTH100 - resolve() would leave the folder that gets mounted
        sm = gpus.find(request.plan.gpu).sm
        return _Places(
            model=request.checkpoint.resolve(),
            output=output,
            scratch=output.with_name(f".{output.name}.scratch"),
            timing=output.with_name(f".timing-sm{sm}-tensorrt-{self._stack.tensorrt}.cache"),
        )

    def _commands(
        self, plan: Plan, places: _Places, *, timing_input: Path | None
    ) -> tuple[commands.Command, commands.Command]:
        first = commands.checkpoint_command(plan, model=places.model, output=places.checkpoint, examples=self._examples)
        second = commands.build_command(
            plan,
            checkpoint=places.checkpoint,
            output=places.output,
            timing_output=places.new_timing,
            timing_input=timing_input,
        )
        return first, second

    def _check_tools(self, steps: tuple[commands.Command, ...], places: _Places) -> None:
        missing = [] if shutil.which(commands.BUILD_TOOL) else [commands.BUILD_TOOL]
        missing += [
            word for step in steps for word in step.argv[1:2] if word.endswith(".py") and not Path(word).exists()
        ]
        if missing:
            raise CommandError(
                f"not on this machine: {', '.join(missing)}",
                where="TensorRT-LLM",
                fix=f"run `engineroom build --dry-run | {self._container_command(places)}`",
            )

    def _check_engine(self, plan: Plan, output: Path) -> None:
        """The tools said that all went well; look."""
        for rank in range(plan.world_size):
            file = output / f"rank{rank}.engine"
            if not file.is_file() or file.stat().st_size == 0:
                raise CommandError(f"it left no {file.name}", where=commands.BUILD_TOOL, fix="see its output")
        try:
            version = json.loads((output / "config.json").read_bytes()).get("version")
        except (OSError, ValueError, AttributeError):
            raise CommandError(
                "it left no readable config.json", where=commands.BUILD_TOOL, fix="see its output"
            ) from None
        if version != self._stack.trtllm:
            raise CommandError(
                f"it is of TensorRT-LLM {str(version)[:40]}, not {self._stack.trtllm}",
                where=commands.BUILD_TOOL,
                fix=f"build in {self._stack.image}",
            )

    def _about(self, request: BuildRequest, places: _Places) -> list[str]:
        plan, gpu, stack = request.plan, gpus.find(request.plan.gpu), self._stack
        many = min(plan.world_size, gpu.gpus_per_node)
        groups = f", experts in {plan.ep} groups" if plan.ep > 1 else ""
        lines = [
            f"{plan.model.architecture} from {request.record.source[:200]}, {plan.precision}, keys and values"
            f" {plan.kv_dtype}, tensor {plan.tp} × pipeline {plan.pp}{groups}, for {gpu.product} (SM {gpu.sm}).",
            f"{plan.parameters:,} parameters, from {parameters_source(request.record)}.",
            "",
            f"Where: on a machine with {many} × {gpu.product}, inside the image that will serve the engine",
            f"(TensorRT-LLM {stack.trtllm}, TensorRT {stack.tensorrt}, CUDA {stack.cuda}, driver {stack.driver}):",
            f"    {self._container_command(places)} < this-script",
        ]
        data = commands.calibration(plan)
        if data:
            # 70B to FP8 took more than 210 GB of GPU memory (TensorRT-LLM issue 1849): 3 bytes for each parameter.
            samples = f"{data.get('size', 512)} samples of {data['dataset']}"
            lines.append(
                f"Calibration reads {samples} from the Hugging Face Hub and holds the model in 16 bit: about"
                f" {plan.parameters * 3 // 10**9} GB over all GPUs."
            )
        if commands.plugins(plan)["use_paged_context_fmha"] == "disable":
            lines.append(f"Keys and values in {plan.kv_dtype} switch paged context FMHA off, and with it KV reuse.")
        return lines


def _check_kv_type(plan: Plan, checkpoint: Path, *, tool: str) -> None:
    """Raise CommandError where the TensorRT-LLM checkpoint has another KV type than the engine key says.

    quantize_by_modelopt.py clears a KV type that ModelOpt chose by itself for fp8 and nvfp4 only; AWQ checkpoints
    with fp8 keys and values that nobody asked for have been reported.
    """
    try:
        config = json.loads((checkpoint / "config.json").read_bytes())
        chosen = config.get("quantization", {}).get("kv_cache_quant_algo")
    except (OSError, ValueError, AttributeError):
        raise CommandError("it left no readable config.json", where=tool, fix="see its output") from None
    wanted = plan.kv_dtype.upper() if plan.kv_dtype in ("fp8", "int8") else None
    if chosen != wanted:
        became = str(chosen)[:20].lower() if chosen else "those of the activations"
        raise CommandError(
            f"it made keys and values {became}, not {plan.kv_dtype}",
            where=tool,
            fix=f"set kv_cache.dtype: {became}" if chosen else "set kv_cache.dtype: auto",
        )


def _layout(argv: tuple[str, ...], *more: str) -> str:
    """One flag a line; ``more`` is shell text that is quoted already."""
    lines: list[list[str]] = [[]]
    for word in argv:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return " \\\n  ".join([*(" ".join(line) for line in lines), *more])


def _one_line(text: str) -> str:
    """``text`` as a comment: a line feed in a path would end the comment and become a command."""
    return "".join(char if char.isprintable() else "?" for char in text)
