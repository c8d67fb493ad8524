"""An estimator whose steps can be computed by hand, and deployments for it."""

from engineroom import gpus
from engineroom.gpus import GpuClass
from engineroom.planning.estimator import Band, Deployment, Step
from engineroom.planning.known_models import find_shape


class Straight:
    """A step takes ``base`` ms, and ``token`` ms for each token in it."""

    name = "straight"

    def __init__(self, base: float = 10.0, token: float = 0.01, band: tuple[float, float] = (0.8, 1.25)) -> None:
        self.base, self.token, self._band = base, token, band

    def problem(self, deployment: Deployment) -> str | None:
        return None

    def step_ms(self, deployment: Deployment, step: Step) -> float:
        return self.base + self.token * step.tokens

    def band(self, deployment: Deployment) -> Band:
        return Band(*self._band, "by definition")

    def source(self, deployment: Deployment) -> str:
        return "by definition"

    def unread(self, gpu: GpuClass) -> str | None:
        return None

    def save(self) -> None:
        pass


def deployment(model: str = "llama-3.1-8b", gpu: str = "h100", precision: str = "fp8", tp: int = 1) -> Deployment:
    kv = "fp8" if precision == "fp8" else "bfloat16"
    return Deployment(find_shape(model), gpus.find(gpu), precision, kv, tp)  # type: ignore[arg-type]
