"""What mser_jax.aot found, as text and as an HTML page."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import re
from collections.abc import Mapping, Sequence

from mser_jax import storage
from mser_jax.telemetry.hlo import Buffer
from mser_jax.telemetry.roofline import Chip, Roofline
from mser_jax.telemetry.throughput import duration

GIB = 2**30
NOTE = (
    "This is a prediction: memory as the compiler planned it, times from published peaks "
    "(mser_jax/telemetry/peaks.toml) at full use of every unit and link. Nothing was run; a real step is slower."
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """Bytes of one kind of memory on one device."""

    name: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A compiled step on one mesh. `problem`: what the compiler said where it refused; `roofline` is then None."""

    chip: Chip
    mesh: Mapping[str, int]
    slices: int
    batch_size: int
    audio_seconds: float
    replicated: float
    analytic_flops: float
    compile_seconds: float
    kinds: tuple[Kind, ...]
    roofline: Roofline | None = None
    largest: tuple[Buffer, ...] = ()
    xla_flops: float = 0.0
    problem: str = ""

    @property
    def devices(self) -> int:
        """jax devices."""
        count = 1
        for size in self.mesh.values():
            count *= size
        return count

    @property
    def used(self) -> int:
        """Bytes of HBM of a device; where it was refused, those of its arguments, or what the compiler said."""
        held = sum(kind.bytes for kind in self.kinds)
        said = re.search(r"(Used |HLO temporaries \()([\d.]+)([KMGT])\b", self.problem)
        if not said:
            return held
        size = int(float(said[2]) * 1024 ** ("KMGT".index(said[3]) + 1))
        return size if said[1] == "Used " else held + size

    @property
    def capacity(self) -> float:
        """Bytes of HBM of a device."""
        return self.chip.device.hbm_bytes

    @property
    def fits(self) -> bool:
        """Whether all of it goes into HBM."""
        return not self.problem and self.used <= self.capacity

    @property
    def step_seconds(self) -> float:
        """Of the roofline; infinite where there is none."""
        return self.roofline.step if self.roofline else float("inf")

    @property
    def mfu(self) -> float:
        """Analytic FLOPs over what the peak would do in that time."""
        return self.analytic_flops / (self.step_seconds * self.chip.device.flops * self.devices)

    @property
    def utterances_per_second(self) -> float:
        """Predicted."""
        return self.batch_size / self.step_seconds


def summary(p: Prediction) -> str:
    """One line."""
    memory = f"{p.used / GIB:.1f} of {p.capacity / GIB:.0f} GiB"
    if not p.fits:
        return f"does not fit ({memory})"
    return (
        f"{memory}, step {p.step_seconds * 1e3:,.1f} ms, MFU {p.mfu:.2f}, {p.utterances_per_second:.0f} utterances/s, "
        f"bound by {p.roofline.bound}"
    )


def table(tried: Sequence[tuple[str, Prediction]]) -> str:
    """What a search tried, best first."""
    return "\n".join([f"{summary(p)}\n    {name}" for name, p in tried]) + "\n"


def text(p: Prediction, title: str) -> str:
    """The whole report."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in p.mesh.items())
    lines = [
        title,
        NOTE,
        "",
        f"mesh {mesh} ({p.devices} devices, {p.slices} slice{'s' * (p.slices > 1)}); global batch {p.batch_size}; "
        f"compiled in {duration(p.compile_seconds)}; {p.replicated:.2%} of parameter bytes whole on every fsdp shard",
        "",
        "HBM a device, MiB",
        *(f"  {kind.name:<28}{kind.bytes / 2**20:>12,.1f}" for kind in p.kinds),
        f"  {'total':<28}{p.used / 2**20:>12,.1f}  of {p.capacity / 2**20:,.0f}: "
        + (f"fits, {1 - p.used / p.capacity:.0%} to spare" if p.fits else "DOES NOT FIT"),
    ]
    if not p.fits:
        lines += ["", *_offenders(p)]
    if p.roofline:
        lines += ["", *_traffic(p.roofline), "", *_times(p)]
    return "\n".join(lines)


def _offenders(p: Prediction) -> list[str]:
    """The largest buffers: as the compiler lists them, else as instructions make them."""
    if p.problem:
        said = re.findall(r"Size: ([\d.]+[KMGT]?)\s+(?:.*\n)*?\s+Shape: (\S+)", p.problem)
        names = re.findall(r'op_name="([^"]*)"', p.problem)
        rows = [f"  {size:>10}  {shape}  {name}" for (size, shape), name in zip(said, names + [""] * len(said),
                                                                              strict=False)]  # fmt: skip
        said = ["Largest buffers, as the compiler says", *(rows[:8] or [f"  {p.problem[:2000]}"])]
        return [*said, "Largest arrays of the state, on each device", *(_buffer(b) for b in p.largest)]
    return ["Largest arrays that the step makes", *(_buffer(b) for b in p.largest)]


def _buffer(b: Buffer) -> str:
    return f"  {b.bytes / 2**20:>10,.1f} MiB  {b.dtype}{list(b.dims)}  {b.op_name}"


def _traffic(roofline: Roofline) -> list[str]:
    head = f"  {'collective':<20}{'axes':<12}{'':<14}{'runs':>7}{'GB':>9}{'GB sent':>9}{'ICI ms':>9}{'DCN ms':>9}"
    rows = [
        f"  {t.kind:<20}{t.axes:<12}{'asynchronous' if t.asynchronous else 'synchronous':<14}{t.count:>7}"
        f"{t.bytes / 1e9:>9.2f}{t.wire_bytes / 1e9:>9.2f}{t.ici_seconds * 1e3:>9.2f}{t.dcn_seconds * 1e3:>9.2f}"
        for t in roofline.transfers
    ]
    return ["Collectives of a step, on each device", head, *rows]


def _times(p: Prediction) -> list[str]:
    r = p.roofline
    analytic = p.analytic_flops / p.devices
    hours = p.utterances_per_second * p.audio_seconds / p.batch_size * 24
    return [
        "Times of a step, ms",
        f"  arithmetic {r.compute * 1e3:.1f}  ({r.flops / 1e12:.2f} TFLOP counted a device, {analytic / 1e12:.2f} "
        f"analytic, {p.xla_flops / 1e12:.2f} as XLA says, loop bodies once)",
        f"  HBM {r.hbm * 1e3:.1f}  ({r.bytes / 1e9:.1f} GB);  each operation at the longer of both: "
        f"{r.operations * 1e3:.1f}",
        f"  ICI {r.ici * 1e3:.1f}  DCN {r.dcn * 1e3:.1f}  of which nothing hides {r.exposed * 1e3:.1f} (synchronous)",
        f"  step {r.step * 1e3:.1f}, bound by {r.bound}",
        f"Predicted MFU {p.mfu:.3f}, {p.utterances_per_second:,.0f} utterances/s, {hours:,.0f} audio-hours a day",
        f"Peaks of {p.chip.name}: {p.chip.source}",
    ]


def write_html(path: str, p: Prediction, title: str) -> None:
    """One page without outside files: the text, a bar of memory by kind, the roofline."""
    pictures = [_memory_bar(p)] + ([_roofline_plot(p)] if p.roofline else [])
    images = "\n".join(f'<p><img alt="" src="data:image/png;base64,{picture}"></p>' for picture in pictures)
    body = f"<h1>{html.escape(title)}</h1>\n<p><b>{html.escape(NOTE)}</b></p>\n{images}\n"
    page = f'<!doctype html>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n{body}'
    storage.absolute(path).write_text(f"{page}<pre>{html.escape(text(p, title))}</pre>\n")


def _png(figure: object) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    return base64.b64encode(buffer.getvalue()).decode()


def _memory_bar(p: Prediction) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.8))
    axes = figure.add_subplot()
    left = 0.0
    for kind in p.kinds:
        axes.barh([0], [kind.bytes / GIB], left=left, label=f"{kind.name} {kind.bytes / GIB:.2f}")
        left += kind.bytes / GIB
    axes.axvline(p.capacity / GIB, color="black", linestyle="--")
    axes.set_xlabel(f"GiB a device; the line is the {p.capacity / GIB:.0f} GiB of {p.chip.name}")
    axes.set_yticks([])
    axes.legend(ncols=3, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _png(figure)


def _roofline_plot(p: Prediction) -> str:
    """FLOP/s against FLOPs a byte of HBM traffic: the roof, this step at its predicted time, and its roof alone."""
    from matplotlib.figure import Figure

    r, device = p.roofline, p.chip.device
    figure = Figure(figsize=(6, 4))
    axes = figure.add_subplot()
    intensity = r.flops / max(r.bytes, 1)
    ridge = device.flops / device.hbm_bandwidth
    span = [min(intensity, ridge) / 10, ridge, max(intensity, ridge) * 10]
    axes.loglog(span, [min(device.flops, x * device.hbm_bandwidth) for x in span], color="black")
    axes.loglog([intensity], [r.flops / r.step], "o", label=f"the step: {r.flops / r.step / 1e12:.0f} TFLOP/s")
    axes.loglog([intensity], [r.flops / r.operations], "x", label="without exposed collectives")
    axes.set_xlabel("FLOPs a byte of HBM traffic")
    axes.set_ylabel(f"FLOP/s of one {p.chip.name} device")
    axes.legend()
    return _png(figure)
