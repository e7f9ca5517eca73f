"""Speed of trainings in records, and the time and price of a plan from it."""

from types import SimpleNamespace

import pytest

from fine_core.dit import count_macs
from fine_core.speed import bf16_peak, training_speed
from sweeps.planning.machine import GpuSpeed, Machine, gpu_speed
from tests.tiny import compute, tiny_base
from trainables.storage.store import Store
from trainables.training.context import LocalContext


def test_devices_are_known_by_their_names():
    peaks = {
        "NVIDIA H200": 989e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA L40S": 362e12,
        "NVIDIA L4": 121e12,
        "Tesla T4": 65e12,
    }
    assert {name: bf16_peak(name) for name in peaks} == peaks
    assert bf16_peak("NVIDIA A40") == 150e12 and bf16_peak("NVIDIA A10G") == 70e12 and bf16_peak("AMD MI300X") is None
    assert bf16_peak("NVIDIA RTX A4000") is bf16_peak("NVIDIA RTX A1000") is bf16_peak("NVIDIA T400") is None


def test_speed_is_that_of_the_figures_of_a_published_run():
    """DiT-XL/2 on an H100 at 30 % of its peak trains 417 images a second: 237 GFLOP a forward pass."""
    speed = training_speed(
        macs=118_600_000_000, images=417_000, seconds=1000.0, num_workers=1, device_name="NVIDIA H100 80GB HBM3"
    )
    assert speed["train_images_per_s"] == 417 and speed["mfu"] == pytest.approx(0.30, abs=0.001)
    assert training_speed(macs=1, images=0, seconds=1.0, num_workers=1, device_name="") == {}
    assert "mfu" not in training_speed(macs=1, images=1, seconds=1.0, num_workers=1, device_name="")
    two = training_speed(macs=10**9, images=100, seconds=1.0, num_workers=2, device_name="NVIDIA H100")
    assert two["mfu"] == pytest.approx(6 * 10**9 * 100 / (2 * 989e12))


def test_a_record_has_its_training_speed(tmp_path):
    job = tiny_base("scratch")
    record = compute(job, Store(tmp_path / "store"), LocalContext(tmp_path / "work"))
    expected = record.metrics["train_steps"] * job.training.batch_size / record.metrics["train_s"]
    assert record.metrics["train_images_per_s"] == pytest.approx(expected)
    assert record.metrics["train_flops_per_s"] == pytest.approx(6 * count_macs(job.model) * expected)
    assert "mfu" not in record.metrics, "of a CPU no peak is known"


def records(*entries: tuple[str, float, int]):
    """A store and jobs with records of (hardware, FLOP/s, workers)."""
    found = {
        number: SimpleNamespace(metrics={"train_flops_per_s": flops, "num_workers": workers}, provenance={"hardware": hardware})
        for number, (hardware, flops, workers) in enumerate(entries)
    }
    found[-1] = SimpleNamespace(metrics={"fid": 1.0}, provenance={})
    return SimpleNamespace(read_record=found.get), [-1, *range(len(entries)), 99]


def test_records_of_the_same_device_are_believed_first():
    store, jobs = records(
        ("NVIDIA H200", 300e12, 1), ("NVIDIA H200", 500e12, 2), ("CPU x86_64", 1e9, 1), ("NVIDIA L4", 20e12, 1)
    )
    found = gpu_speed(store, jobs, device_name="NVIDIA H200", precision="bf16")
    assert found == GpuSpeed(flops_per_s=275e12, source="275 TFLOP/s by 2 records of NVIDIA H200")
    assert gpu_speed(store, jobs, device_name=None, precision="bf16") == found, "those of most records, where no GPU is here"
    table = gpu_speed(store, jobs, device_name="NVIDIA A100-SXM4-40GB", precision="bf16")
    assert table.source == "26% of the bf16 peak of NVIDIA A100-SXM4-40GB" and table.flops_per_s == pytest.approx(0.26 * 312e12)
    assert gpu_speed(*records(), device_name=None, precision="bf16").flops_per_s is None


def test_a_plan_says_gpu_hours_and_money():
    gpu = GpuSpeed(flops_per_s=100e12, source="100 TFLOP/s by 3 records of X")
    macs = 100e12 * 3600 / 2 * 12
    assert Machine(slots=None, gpu=gpu, gpu_hour_price=2.5).estimate(core_s=1.0, macs=macs) == (
        "about 12 GPU-hours, 30.00 at 2.5 an hour (100 TFLOP/s by 3 records of X; an estimate)"
    )
    assert Machine(slots=None, gpu=GpuSpeed(flops_per_s=None, source="")).estimate(core_s=1.0, macs=macs) is None
    assert "about 50 s on 2 CPU cores" in Machine(slots=2).estimate(core_s=100.0, macs=macs)
