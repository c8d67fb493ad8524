"""The estimator without measurements: data sheets, and the share of them that kernels reach.

For GPUs and environments that :mod:`~engineroom.planning.aiconfigurator_estimator` has nothing for. Its band is wide.
"""

from engineroom.gpus import GpuClass, Precision
from engineroom.planning.estimator import Band, Deployment, Step, step_ms
from engineroom.planning.operators import AllReduce, Attention, TokenOperator

#: Share of the data sheet's bandwidth, seconds that a kernel takes at least, and seconds until a message between GPUs
#: arrives: aiconfigurator 0.12.0, systems/*.yaml (mem_bw_empirical_scaling_factor, mem_empirical_constant_latency,
#: p2p_latency), there called unofficial.
BANDWIDTH_SHARE = 0.8
LAUNCH = 3e-6
MESSAGE = 10e-6

#: Share of the data sheet's arithmetic that large matrix products reach: the median over seven cards and two types, of
#: products of 4,096 values and more each way in aiconfigurator 0.12.0 (bfloat16 0.57 to 0.85, fp8 0.47 to 0.74).
ARITHMETIC_SHARE = 0.63


class RooflineTimes:
    """:class:`~engineroom.planning.estimator.OperatorTimes` of one class."""

    def __init__(self, gpu: GpuClass) -> None:
        """``gpu`` needs bandwidth and arithmetic rates."""
        self._gpu = gpu

    def token_ms(self, operator: TokenOperator, tokens: float) -> float:
        """An operator on ``tokens`` tokens."""
        return self._ms(operator.arithmetic, operator.count, operator.flops(tokens), operator.traffic(tokens))

    def prefill_ms(self, attention: Attention, prompts: float, length: float) -> float:
        """Attention over whole prompts."""
        flops, traffic = attention.prefill_flops(prompts, length), attention.prefill_traffic(prompts, length)
        return self._ms(attention.arithmetic, attention.count, flops, traffic)

    def decode_ms(self, attention: Attention, sequences: float, context: float) -> float:
        """Attention of one token of each sequence over its context."""
        flops, traffic = attention.decode_flops(sequences, context), attention.decode_traffic(sequences, context)
        return self._ms("bfloat16", attention.count, flops, traffic)

    def all_reduce_ms(self, operator: AllReduce, tokens: float) -> float:
        """A ring: each GPU sends 2 × (ranks - 1) / ranks of the values."""
        _, gbs = self._gpu.link_between(operator.ranks)
        sent = 2 * (operator.ranks - 1) / operator.ranks * 2 * operator.hidden * tokens
        return 1000.0 * operator.count * (MESSAGE + sent / ((gbs or 1.0) * 1e9 * BANDWIDTH_SHARE))

    def _ms(self, arithmetic: Precision, count: int, flops: float, traffic: float) -> float:
        tflops = self._gpu.tflops.get(arithmetic) or self._gpu.tflops.get("bfloat16") or 1.0
        bound = max(
            flops / (tflops * 1e12 * ARITHMETIC_SHARE), traffic / (self._gpu.bandwidth_gbs * 1e9 * BANDWIDTH_SHARE)
        )
        return 1000.0 * (count * LAUNCH + bound)


class RooflineEstimator:
    """:class:`~engineroom.planning.estimator.Estimator` for any GPU class with a data sheet."""

    name = "roofline"

    def __init__(self) -> None:
        """Stateless but for the classes that it has met."""
        self._times: dict[str, RooflineTimes] = {}

    def problem(self, deployment: Deployment) -> str | None:
        """It needs bandwidth and arithmetic of the class."""
        gpu = deployment.gpu
        if gpu.is_cpu:
            return "there is no estimate for processors; measure with `make bench`"
        if not gpu.bandwidth_gbs or not (gpu.tflops.get("bfloat16") or gpu.tflops.get("float16")):
            return f"the class {gpu.name} names neither bandwidth nor arithmetic rates"
        return None

    def step_ms(self, deployment: Deployment, step: Step) -> float:
        """Milliseconds of a step."""
        gpu = deployment.gpu
        times = self._times.setdefault(gpu.name, RooflineTimes(gpu))
        return step_ms(times, deployment, step)

    def band(self, deployment: Deployment) -> Band:
        """Half to 1.5 times."""
        return Band(0.5, 1.5, "data sheets only: nothing was measured on this class or its architecture")

    def source(self, deployment: Deployment) -> str:
        """Data sheets."""
        return f"roofline of {deployment.gpu.name}'s data sheet"

    def unread(self, gpu: GpuClass) -> str | None:
        """Nothing."""
        return None

    def save(self) -> None:
        """Nothing was expensive."""
