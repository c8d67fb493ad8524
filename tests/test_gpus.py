"""GPU classes: complete facts, and a clear answer to a class that is not there."""

from pathlib import Path

import pytest

from engineroom import gpus
from engineroom.errors import InputError


def test_every_class_sees_less_memory_than_is_sold() -> None:
    cards = [gpu for gpu in gpus.catalogue().values() if not gpu.is_cpu]

    assert cards
    for gpu in cards:
        assert 0.9 * gpu.nominal_gib < gpu.visible_gib < gpu.nominal_gib, gpu.name
        assert gpu.gfd_product == [gpu.product.replace(" ", "-")], gpu.name


def test_every_figure_of_a_card_has_a_source() -> None:
    for gpu in gpus.shipped().values():
        assert ("memory" in gpu.sources) == ("speed" in gpu.sources) == ("link" in gpu.sources) == (not gpu.is_cpu)
        assert ("mig" in gpu.sources) == bool(gpu.mig), gpu.name
        assert ("instances" in gpu.sources) == bool(gpu.instances), gpu.name
        if not gpu.is_cpu:
            assert set(gpu.tflops) >= {name for name in gpu.precisions if name in ("float16", "fp8", "nvfp4", "int8")}
            assert min(gpu.bandwidth_gbs, gpu.link_gbs, gpu.pcie_gbs, gpu.node_gbs, gpu.gpus_per_node) > 0


def test_the_classes_that_were_asked_for_are_there() -> None:
    assert set(gpus.shipped()) == {
        "cpu", "a10g", "l4", "l40s", "a100-40g", "a100-40g-pcie", "a100", "a100-pcie", "h100", "h100-pcie", "h100-nvl",
        "h200", "gh200", "b200", "gb200", "rtx-pro-6000",
    }  # fmt: skip


def test_an_alias_and_a_node_label_name_the_class() -> None:
    names = [name for gpu in gpus.shipped().values() for name in (*gpu.aliases, *gpu.gfd_product)]
    assert len({name.lower() for name in names} | set(gpus.shipped())) == len(names) + len(gpus.shipped())
    assert gpus.find("NVIDIA-H100-NVL").name == "h100-nvl"
    assert gpus.find("a100-80g").name == "a100"


def test_a_mig_instance_is_a_class_with_its_share_of_the_card() -> None:
    card, half = gpus.find("h100"), gpus.find("H100-3g.40gb")
    assert (half.name, half.visible_gib, half.gpus_per_node) == ("h100-3g.40gb", 39.5, 1)  # nvidia-smi mig -lgip
    assert half.bandwidth_gbs == card.bandwidth_gbs / 2
    assert half.tflops["fp8"] == pytest.approx(card.tflops["fp8"] * 3 / 7)
    assert (half.resource, card.resource) == ("nvidia.com/mig-3g.40gb", "nvidia.com/gpu")
    assert half.product != card.product  # engines of the one do not serve on the other


def test_mig_instances_never_see_more_than_the_card_has() -> None:
    for card in gpus.shipped().values():
        for name, profile in card.mig.items():
            one = gpus.find(f"{card.name}-{name}")
            assert one.visible_gib * profile.count < card.visible_gib, one.name
            assert one.bandwidth_gbs * profile.count <= card.bandwidth_gbs, one.name


def test_two_cards_on_a_bridge_talk_over_it_and_four_over_pcie() -> None:
    assert gpus.find("h100-nvl").link_between(2) == ("NVLink bridge", 300)
    assert gpus.find("h100-nvl").link_between(4) == ("PCIe", 64)
    assert gpus.find("h100").link_between(8) == ("NVLink", 450)


def test_fp8_is_offered_from_sm_89_on_and_nvfp4_on_blackwell_only() -> None:
    for gpu in gpus.catalogue().values():
        sm = int(gpu.sm or 0)
        assert ("fp8" in gpu.precisions) == (sm >= 89), gpu.name
        assert ("nvfp4" in gpu.precisions) == (sm >= 100), gpu.name


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("h10", "did you mean h100?"),
        ("h100sxm", "did you mean h100?"),
        ("T4", "dropped SM 75 (T4) in 0.14"),
        ("Tesla-V100-SXM2-16GB", "removed SM 70 (V100) in 0.15"),
        ("quantum", "use one of"),
        ("h100-9g.90gb", "one of h100-1g.10gb"),
        ("l4-1g.10gb", "it cannot be cut"),
    ],
)
def test_an_unknown_class_is_refused_with_what_to_write(asked: str, answer: str) -> None:
    with pytest.raises(InputError) as refusal:
        gpus.find(asked)

    assert answer in f"{refusal.value.found}; {refusal.value.fix}"


def test_case_does_not_matter() -> None:
    assert gpus.find("H100") is gpus.find("h100")


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file of the user's own classes, empty yet."""
    monkeypatch.setenv("ENGINEROOM_GPUS", str(tmp_path / "gpus.yaml"))
    monkeypatch.setattr(gpus, "catalogue", gpus.catalogue.__wrapped__)
    return tmp_path / "gpus.yaml"


def test_a_price_of_ones_own_is_laid_over_the_class(own: Path) -> None:
    own.write_text("classes: {h100: {price: {on_demand: 2.8, spot: 1.4, source: our contract, date: 2026-11-01}}}")
    card = gpus.find("h100")
    assert card.price is not None
    assert (card.price.on_demand, card.price.date, card.visible_gib) == (2.8, "2026-11-01", 79.1)
    share = gpus.find("h100-1g.10gb").price
    assert share is not None
    assert share.on_demand == pytest.approx(0.4)
    assert gpus.shipped()["h100"].price is None


def test_a_card_of_ones_own_is_a_class(own: Path) -> None:
    own.write_text("classes: {l20: {sm: '89', precisions: [fp8], nominal_gib: 48, visible_gib: 44, gpus_per_node: 4}}")
    assert gpus.find("l20").visible_bytes == 44 << 30
    assert gpus.find("h100").name == "h100"


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        ("classes: {h100: {prise: 1}}", "classes.h100.prise", "no such fact"),
        ("classes: {h100: {price: {on_demand: -1, source: x, date: 2026-11-01}}}", "h100.price.on_demand", "-1"),
        ("classes: {h100: {price: {on_demand: 1, source: x, date: yesterday}}}", "h100.price.date", "yesterday"),
        ("classes: {l20: {sm: '89'}}", "classes.l20.precisions", "missing"),
        ("classes: {l20: 3}", "classes.l20", "a mapping"),
        ("classes: {L 20: {}}", "", "no name of a class"),
        ("h100: {}", "", "one mapping, `classes`"),
        ("[", "", "cannot read it"),
    ],
)
def test_a_wrong_file_of_ones_own_is_one_sentence(own: Path, text: str, where: str, found: str) -> None:
    own.write_text(text)
    with pytest.raises(InputError) as refusal:
        gpus.find("h100")
    assert where in refusal.value.where
    assert str(own) in refusal.value.where
    assert found in refusal.value.found
    assert "\n" not in str(refusal.value)


def test_a_missing_file_of_ones_own_is_refused(own: Path) -> None:
    with pytest.raises(InputError, match="cannot read it"):
        gpus.find("h100")


def test_the_class_cpu_has_the_memory_of_this_machine() -> None:
    assert 0 < gpus.find("cpu").visible_bytes <= gpus.host_memory_bytes()
