from __future__ import annotations

from pathlib import Path

from packhorse.compare.energy import EnergyMeter


def package(root: Path, number: int, counter: int) -> Path:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(exist_ok=True)
    (folder / "max_energy_range_uj").write_text("1000000\n")
    (folder / "energy_uj").write_text(f"{counter}\n")
    return folder


def test_packages_are_summed_and_a_wrapped_counter_is_unwrapped(tmp_path: Path) -> None:
    package(tmp_path, 0, 100_000)
    package(tmp_path, 1, 900_000)
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of package 0: not counted twice
    meter = EnergyMeter(tmp_path)
    package(tmp_path, 0, 300_000)
    package(tmp_path, 1, 100_000)
    assert meter.joules() == 0.2 + 0.2


def test_no_counter_is_none_and_never_an_estimate(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).joules() is None
