"""The sweep on gs://: two runner processes, one list, each row once."""

import os

import sweeps
from fake_gcs import Fault


def test_two_runners_share_a_list_on_gs(gcs, bucket, tmp_path):
    seeds = range(10, 14)
    path = sweeps.write(tmp_path, list(seeds))
    gcs.faults += [Fault("POST .*ifGenerationMatch", 503, times=1), Fault("POST", delay=0.05)]
    environ = {**os.environ, **gcs.environ}
    runners = [sweeps.start(path, bucket, "--heartbeat=2", env=environ) for _ in range(2)]
    said = [runner.communicate(timeout=120)[1] for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0], said
    assert sweeps.times_run(bucket, seeds) == dict.fromkeys(seeds, 1)
    assert any("POST" in line and "ifGenerationMatch=0" in line for line in gcs.requests)
    lines = (bucket / "sweep.csv").read_text().splitlines()
    assert len(lines) == 5 and all(",done," in line for line in lines[1:])
