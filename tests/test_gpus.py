"""GPU classes: complete facts, and a clear answer to a class that is not there."""

import pytest

from engineroom import gpus
from engineroom.errors import InputError


def test_every_class_sees_less_memory_than_is_sold() -> None:
    cards = [gpu for gpu in gpus.catalogue().values() if not gpu.is_cpu]

    assert cards
    for gpu in cards:
        assert 0.9 * gpu.nominal_gib < gpu.visible_gib < gpu.nominal_gib, gpu.name
        assert gpu.gfd_product, gpu.name


def test_fp8_is_offered_from_sm_89_on_and_nvfp4_on_blackwell_only() -> None:
    for gpu in gpus.catalogue().values():
        sm = int(gpu.sm or 0)
        assert ("fp8" in gpu.precisions) == (sm >= 89), gpu.name
        assert ("nvfp4" in gpu.precisions) == (sm >= 100), gpu.name


@pytest.mark.parametrize(("asked", "answer"), [("h10", "did you mean h100"), ("T4", "0.14"), ("quantum", "use one of")])
def test_an_unknown_class_is_refused_with_what_to_write(asked: str, answer: str) -> None:
    with pytest.raises(InputError) as refusal:
        gpus.find(asked)

    assert answer in f"{refusal.value.found}; {refusal.value.fix}"


def test_case_does_not_matter() -> None:
    assert gpus.find("H100") is gpus.find("h100")


def test_the_class_cpu_has_the_memory_of_this_machine() -> None:
    assert 0 < gpus.find("cpu").visible_bytes <= gpus.host_memory_bytes()
