"""What a deployment costs: from the price of a GPU and an hour to a million tokens."""

from dataclasses import dataclass

from engineroom.gpus import GpuClass


@dataclass(frozen=True)
class Cost:
    """US dollars of some GPUs of a class."""

    hour: float
    """All GPUs for one hour, on demand."""
    spot_hour: float | None
    """The same at the spot price; None where none is known."""
    million_tokens: float | None
    """Of answers, at the traffic that they serve; None where none was given."""
    source: str
    """Who named the price, and when."""


def cost(gpu: GpuClass, *, gpus: int, tokens_per_second: float | None) -> Cost | None:
    """The cost of ``gpus`` GPUs that answer ``tokens_per_second``; None where no price of the class is known."""
    price = gpu.price
    if price is None or price.on_demand is None:
        return None
    hour = gpus * price.on_demand
    return Cost(
        hour=hour,
        spot_hour=None if price.spot is None else gpus * price.spot,
        million_tokens=hour / (tokens_per_second * 3600) * 1e6 if tokens_per_second else None,
        source=f"{price.source}, {price.date}",
    )
