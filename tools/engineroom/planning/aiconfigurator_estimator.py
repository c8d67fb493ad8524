"""The estimator with measurements: a model's operators, each as long as NVIDIA measured it."""

from pathlib import Path

from engineroom.gpus import GpuClass
from engineroom.planning.aiconfigurator_curves import Curves, curves_file
from engineroom.planning.aiconfigurator_database import DISTRIBUTION, RELEASE, NoDataError, installed_problem
from engineroom.planning.aiconfigurator_times import (
    SYSTEMS,
    MeasuredTimes,
    reference_for,
    systems_needed,
)
from engineroom.planning.estimator import Band, Deployment, Step, step_ms

#: Nine of ten of the 573 runs of dense models in the package's own `silicon_sample.csv` lie within. Measured over
#: predicted speed, 5th to 95th percentile: Llama-3.1-8B on H100 0.73 to 1.10 (177 runs), Qwen3-32B on H100 0.87 to 1.21
#: (180), Llama-3.1-70B on H200 and B200 1.07 to 1.58 (216; faster than the package's own kernels say); with experts
#: Qwen3-235B-A22B on H100 0.90 to 1.21 (127). `make bench` prints them.
MEASURED = Band(0.85, 1.50, "nine of ten of the package's own measured runs of dense models")

#: Judgement, not measurement, from here on.
EXPERTS = Band(0.70, 1.50, "tokens choose experts unevenly, and kernels for them are newer than most engines")
PCIE = Band(0.70, 1.50, "all-reduce over PCIe depends on the machine: tables of one card differ tenfold")
SCALED = Band(0.65, 1.50, "scaled from another card of the architecture by their data sheets")

#: The package's 205 runs of DeepSeek-R1 are up to 2.5 times as fast: they share out attention by requests and guess
#: several tokens a step, neither of which is planned here.
LATENT = Band(0.85, 2.50, "DeepSeek-R1 runs of the package, with attention data parallelism and guessed tokens")


class MeasuredEstimator:
    """:class:`~engineroom.planning.estimator.Estimator` on measured kernels; :meth:`save` keeps what was asked."""

    name = "aiconfigurator"

    def __init__(self, cache: Path | None = None) -> None:
        """``cache`` is the folder that curves are kept in between runs; None: only in memory."""
        self._cache = cache
        self._curves: dict[str, Curves] = {}
        self._times: dict[str, MeasuredTimes] = {}
        self._problems: dict[Deployment, str | None] = {}

    def problem(self, deployment: Deployment) -> str | None:
        """Whether the package is there, knows the architecture, and has or can scale every operator."""
        if deployment not in self._problems:
            self._problems[deployment] = self._find_problem(deployment)
        return self._problems[deployment]

    def step_ms(self, deployment: Deployment, step: Step) -> float:
        """Milliseconds of a step. Only for deployments without a :meth:`problem`."""
        return step_ms(self._of(deployment), deployment, step)

    def band(self, deployment: Deployment) -> Band:
        """The widest of what applies."""
        gpu = deployment.gpu
        band = MEASURED
        if deployment.shape.experts:
            band = band.wider(EXPERTS)
        if deployment.shape.latent:
            band = band.wider(LATENT)
        if deployment.tp >= 4 and gpu.link_between(deployment.tp)[0] == "PCIe":
            band = band.wider(PCIE)
        if reference_for(gpu) != gpu:
            band = band.wider(SCALED)
        return band

    def source(self, deployment: Deployment) -> str:
        """The package, its release, and the card."""
        gpu, reference = deployment.gpu, reference_for(deployment.gpu)
        assert reference is not None
        card = f"{reference.name}" if reference == gpu else f"{reference.name}, scaled to {gpu.name}"
        return f"{DISTRIBUTION} {RELEASE}, kernels measured on {card}"

    def unread(self, gpu: GpuClass) -> str | None:
        """The system whose curves this class needs, where there is a cache and they are not in it yet."""
        reference = None if gpu.is_cpu or installed_problem() else reference_for(gpu)
        if self._cache is None or reference is None:
            return None
        system = SYSTEMS[reference.name]
        return None if system in self._curves or curves_file(self._cache, system).exists() else system

    def save(self) -> None:
        """Keep the curves that were asked for the first time."""
        for curves in self._curves.values():
            curves.save()

    def _find_problem(self, deployment: Deployment) -> str | None:
        if problem := installed_problem():
            return problem
        if deployment.gpu.is_cpu:
            return "there is no estimate for processors; measure with `make bench`"
        if reference_for(deployment.gpu) is None:
            return f"no card of {deployment.gpu.name}'s architecture (SM {deployment.gpu.sm}) was measured"
        try:
            self.step_ms(deployment, Step(1, 1024, 1, 1024))
        except NoDataError as error:
            return str(error)
        return None

    def _of(self, deployment: Deployment) -> MeasuredTimes:
        gpu = deployment.gpu
        if gpu.name not in self._times:
            reference = reference_for(gpu)
            assert reference is not None
            for system in systems_needed(gpu):
                if system not in self._curves:
                    self._curves[system] = Curves(system, self._cache)
            self._times[gpu.name] = MeasuredTimes(gpu, reference, self._curves)
        return self._times[gpu.name]
