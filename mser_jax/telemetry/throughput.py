"""How fast a run goes: utterances and audio a second, FLOPs, MFU, time left."""

from __future__ import annotations

import time
from typing import Any

# Dense bf16 peak FLOP/s of one device as jax lists it, from the vendors' published tables. A TPU v4, v5p or v7x chip
# is one device on v4 and later ("megacore"); v7x lists its two cores apart.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12 / 2,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


class Throughput:
    """Rates over the steps since the last `report`, from counts that the step itself returns."""

    def __init__(self, total_steps: int, device_kind: str, num_devices: int) -> None:
        """`device_kind` as `jax.Device.device_kind`; MFU is reported only where its peak is known."""
        self._total, self._devices = total_steps, num_devices
        self._peak = PEAK_FLOPS.get(device_kind)
        self._reset()

    def _reset(self) -> None:
        self._start, self._paused = time.monotonic(), 0.0
        self._steps, self._examples, self._seconds, self._flops = 0, 0.0, 0.0, 0.0

    def add(self, examples: float, audio_seconds: float, flops: float) -> None:
        """Counts one finished step; `flops` is the analytic forward + backward cost of the whole batch."""
        self._steps += 1
        self._examples += examples
        self._seconds += audio_seconds
        self._flops += flops

    def pause(self, seconds: float) -> None:
        """Leaves out time spent on evaluation or saving."""
        self._paused += seconds

    def report(self, step: int) -> dict[str, Any]:
        """Metric names as Levanter's, plus `eta_seconds`; starts a new window. {} when no step was added."""
        elapsed = time.monotonic() - self._start - self._paused
        if not self._steps or elapsed <= 0:
            return {}
        out = {
            "throughput/steps_per_second": self._steps / elapsed,
            "throughput/examples_per_second": self._examples / elapsed,
            "throughput/audio_hours_per_hour": self._seconds / elapsed,
            "throughput/tflops_per_second": self._flops / elapsed / 1e12,
            "throughput/eta_seconds": (self._total - step) * elapsed / self._steps,
        }
        if self._peak:
            out["throughput/mfu"] = self._flops / elapsed / (self._peak * self._devices)
        self._reset()
        return out


def duration(seconds: float) -> str:
    """'1h 02m', '3m 20s' or '12s'."""
    whole = round(max(seconds, 0))
    if whole >= 3600:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 60}m {whole % 60:02d}s" if whole >= 60 else f"{whole}s"
