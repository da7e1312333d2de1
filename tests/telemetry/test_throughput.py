"""Rates are counts over time, pauses left out; MFU only where a peak is known."""

import pytest

from mser_jax.telemetry import throughput


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])
    return now


def test_rates(clock):
    meter = throughput.Throughput(total_steps=100, device_kind="TPU v5 lite", num_devices=4)
    for _ in range(10):
        meter.add(examples=48, audio_seconds=120, flops=197e12)
    clock[0] += 7.0
    meter.pause(2.0)
    out = meter.report(10)
    assert out["throughput/steps_per_second"] == pytest.approx(2.0)
    assert out["throughput/examples_per_second"] == pytest.approx(96.0)
    assert out["throughput/audio_hours_per_hour"] == pytest.approx(240.0)
    assert out["throughput/eta_seconds"] == pytest.approx(45.0)
    assert out["throughput/mfu"] == pytest.approx(0.5)
    assert meter.report(10) == {}, "a new window starts"


def test_no_mfu_for_an_unknown_device(clock):
    meter = throughput.Throughput(total_steps=2, device_kind="cpu", num_devices=1)
    meter.add(1, 1, 1)
    clock[0] += 1
    assert "throughput/mfu" not in meter.report(1)


@pytest.mark.parametrize(("seconds", "text"), [(12.4, "12s"), (200, "3m 20s"), (3720, "1h 02m"), (-1, "0s")])
def test_duration(seconds, text):
    assert throughput.duration(seconds) == text
