"""Operator times on a GPU class, from the measured ones of the card that is nearest to it.

A class with measurements of its own takes them as they are. Another one (L4, A10G, GH200, MIG instances, ...) takes
those of a card of its architecture, each operator scaled by the ratio of the two cards' rooflines for just this
operator and size: a kernel keeps the share of the possible that it reached. The same rule serves types that were
not measured, such as fp8 keys and values on an A100.
"""

import dataclasses

from engineroom import gpus
from engineroom.gpus import GpuClass
from engineroom.planning.aiconfigurator_curves import Curves
from engineroom.planning.aiconfigurator_database import EXPERT_TYPES, GEMM_TYPES, NoDataError
from engineroom.planning.operators import (
    AllReduce,
    Attention,
    Elementwise,
    Experts,
    TokenOperator,
    roofline_seconds,
)

#: Our classes that were measured, and the package's names of them.
SYSTEMS = {
    "a100": "a100_sxm",
    "l40s": "l40s",
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "b200": "b200_sxm",
    "gb200": "gb200",
    "rtx-pro-6000": "rtx_pro_6000_server",
}

#: Architectures without a measured card, and the nearest one that has one. SM 86 has no data centre card that was
#: measured; its tensor cores are of A100's generation.
NEAREST_SM = {"86": "80", "103": "100"}

_WEIGHT_ONLY = ("int8", "int4", "int4_awq")

#: What any kernel takes to start and end, seconds (aiconfigurator 0.12.0, systems/*.yaml: 3 microseconds).
LAUNCH = 3e-6


def reference_for(gpu: GpuClass) -> GpuClass | None:
    """The measured class for ``gpu``: itself, else the one of its architecture with the nearest bandwidth."""
    classes = gpus.catalogue()
    if gpu.name in SYSTEMS and gpu == classes.get(gpu.name):
        return gpu
    sm = NEAREST_SM.get(gpu.sm or "", gpu.sm)
    same = [classes[name] for name in SYSTEMS if name in classes and classes[name].sm == sm]
    return min(same, key=lambda one: abs(one.bandwidth_gbs - gpu.bandwidth_gbs), default=None)


class MeasuredTimes:
    """:class:`~engineroom.planning.estimator.OperatorTimes` of one class."""

    def __init__(self, gpu: GpuClass, reference: GpuClass, curves: dict[str, Curves]) -> None:
        """``curves`` maps the package's system names to their curves; systems for links are looked up there too."""
        self._gpu, self._reference, self._all = gpu, reference, curves
        self._curves = curves[SYSTEMS[reference.name]]
        self._own = gpu == reference
        self._measured: dict[TokenOperator, TokenOperator] = {}
        self._attention: dict[Attention, Attention] = {}
        self._links: dict[int, tuple[Curves, bool, float]] = {}

    def token_ms(self, operator: TokenOperator, tokens: float) -> float:
        """An operator on ``tokens`` tokens."""
        measured = self._measured.get(operator) or self._measured.setdefault(
            operator, stand_in(operator, self._reference)
        )
        time = measured.count * self._curves.token_ms(measured, tokens)
        if measured is operator and self._own:
            return time
        return time * self._ratio(
            (operator, operator.flops(tokens), operator.traffic(tokens)),
            (measured, measured.flops(tokens), measured.traffic(tokens)),
        )

    def prefill_ms(self, attention: Attention, prompts: float, length: float) -> float:
        """Attention over whole prompts."""
        measured = self._measured_attention(attention)
        time = attention.count * self._curves.prefill_ms(measured, prompts, length)
        if measured is attention and self._own:
            return time
        return time * self._ratio(
            (attention, attention.prefill_flops(prompts, length), attention.prefill_traffic(prompts, length)),
            (measured, measured.prefill_flops(prompts, length), measured.prefill_traffic(prompts, length)),
        )

    def decode_ms(self, attention: Attention, sequences: float, context: float) -> float:
        """Attention of one token of each sequence over its context."""
        measured = self._measured_attention(attention)
        context = attention.seen(context)
        time = attention.count * self._curves.decode_ms(measured, sequences, context)
        if measured is attention and self._own:
            return time
        return time * self._ratio(
            (attention, attention.decode_flops(sequences, context), attention.decode_traffic(sequences, context)),
            (measured, measured.decode_flops(sequences, context), measured.decode_traffic(sequences, context)),
        )

    def all_reduce_ms(self, operator: AllReduce, tokens: float) -> float:
        """The sum over ranks, over the link that all of them share, scaled by its speed."""
        if operator.ranks not in self._links:
            link, gbs = self._gpu.link_between(operator.ranks)
            donor = link_donor(link, gbs, self._reference)
            scale = donor.link_gbs / (gbs or donor.link_gbs)
            self._links[operator.ranks] = self._all[SYSTEMS[donor.name]], link == "PCIe", scale
        curves, pcie, scale = self._links[operator.ranks]
        return operator.count * scale * curves.all_reduce_ms(operator, tokens, pcie=pcie)

    def _measured_attention(self, attention: Attention) -> Attention:
        """The nearest attention that was measured, or that the package can scale from what was. Raises NoDataError."""
        if attention not in self._attention:
            *others, last = self._candidates(attention)
            self._attention[attention] = next((each for each in others if self._is_measured(each)), last)
        return self._attention[attention]

    def _candidates(self, attention: Attention) -> list[Attention]:
        # Few windows were measured: without one, over as many tokens as it shows.
        same = dataclasses.replace(attention, window=0)
        if same.kv_dtype not in ("bfloat16", "float16", "fp8"):
            same = dataclasses.replace(same, kv_dtype="fp8")
        plain = dataclasses.replace(same, arithmetic="bfloat16")
        wide = dataclasses.replace(plain, kv_dtype="bfloat16")
        usual = dataclasses.replace(wide, heads=32, kv_heads=8, head_dim=128, latent=0)
        if int(self._reference.sm or 0) < 89:  # fp8 was not measured there, whatever it may be used for
            return [wide, usual]
        return [attention if same == attention else same, plain, wide, usual]

    def _is_measured(self, attention: Attention) -> bool:
        try:
            self._curves.prefill_ms(attention, 1, 1024)
            self._curves.decode_ms(attention, 1, 1024)
        except NoDataError:
            return False
        return True

    def _ratio(
        self,
        here: tuple[TokenOperator | Attention, float, float],
        there: tuple[TokenOperator | Attention, float, float],
    ) -> float:
        operator, flops, traffic = here
        measured, measured_flops, measured_traffic = there
        starts = LAUNCH * operator.count
        target = starts + roofline_seconds(self._gpu, operator.arithmetic, flops, traffic)
        return target / (
            starts + roofline_seconds(self._reference, measured.arithmetic, measured_flops, measured_traffic)
        )


def stand_in(operator: TokenOperator, reference: GpuClass) -> TokenOperator:
    """The operator to look up for one whose type was not measured on ``reference``: the nearest that was.

    Weights of 8 and 4 bits that are multiplied in 16 were measured on A100 only.
    """
    if isinstance(operator, Elementwise):
        return operator
    known = EXPERT_TYPES if isinstance(operator, Experts) else GEMM_TYPES
    measured = operator.precision in known
    if measured and (operator.precision not in _WEIGHT_ONLY or reference.sm == "80"):
        return operator
    return dataclasses.replace(operator, precision="fp8" if operator.arithmetic == "fp8" else "bfloat16")


def link_donor(link: str, gbs: float, reference: GpuClass) -> GpuClass:
    """Whose measured all-reduce stands for a link: PCIe cards for PCIe, by its generation; else the reference."""
    classes = gpus.catalogue()
    if link != "PCIe" and reference.link != "PCIe":
        return reference
    measured = [
        classes[name] for name in SYSTEMS if name in classes and (classes[name].link == "PCIe") == (link == "PCIe")
    ]
    return min(measured, key=lambda one: abs(one.link_gbs - gbs), default=reference)


def systems_needed(gpu: GpuClass) -> set[str]:
    """The package's systems that times on ``gpu`` are taken from."""
    reference = reference_for(gpu)
    if reference is None:
        return set()
    links = {gpu.link_between(ranks) for ranks in (2, 4, 8) if ranks <= gpu.gpus_per_node}
    donors = {link_donor(link, gbs, reference).name for link, gbs in links}
    return {SYSTEMS[name] for name in {reference.name, *donors}}
