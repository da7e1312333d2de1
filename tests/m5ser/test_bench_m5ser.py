"""The bench measures what it says, on a plan of a few lines."""

import importlib.util
import json
import pathlib

ROOT = pathlib.Path(__file__).parents[2]


def test_bench_prints_rates_of_generator_and_engine(capsys):
    spec = importlib.util.spec_from_file_location("bench_m5ser", ROOT / "tools" / "bench_m5ser.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    bench.main(
        [f"--config={ROOT / 'configs' / 'm5ser.py'}", "--utterances=12", "--repeats=2", "--set=languages=en"]
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found["utterances"] == 24 and 1 < found["mean_seconds"] < 5
    rates = found["audio_seconds_per_cpu_second"]
    assert set(rates) == {"engine", "generator"} and min(rates.values()) > 1
    assert sum(found["parts"].values()) > 0.99 and {"espeak", "rest"} == set(found["parts"])
    cpu_hours, gigabytes = (found["hours_1000"][name] for name in ("cpu_hours", "gigabytes"))
    assert 0.98 < cpu_hours * rates["generator"] / 1000 < 1.02
    assert 20 < gigabytes < 115.2, "16-bit 16 kHz is 115.2 GB; FLAC is less"
