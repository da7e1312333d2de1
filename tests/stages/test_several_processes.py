"""Both stages on several real processes: each reads its share, and they train as one process does."""

import collections
import itertools
import json
import shutil

import pytest
from processes import Launcher, losses

from mser_jax import stages

BATCH, COUNTS = 16, (1, 2, 4)
MESH = {"mesh.data": 2, "mesh.fsdp": 2, "telemetry.log_every": 1}


@pytest.fixture(scope="module")
def launcher():
    launcher = Launcher()
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def configs(tiny, tiny2):
    """[stage 1, stage 2], on a corpus that is there."""
    both = [tiny(**MESH), tiny2(**MESH)]
    stages.make(both[0]).data_size()
    return both


def test_each_process_decodes_its_share_and_together_they_draw_the_same_batches(launcher, configs, tmp_path):
    for config in configs:
        config.data.update({"num_threads": 0, "prefetch": 0})
    decoded, drawn = {}, {}
    for count in COUNTS:
        runs = [(config, tmp_path) for config in configs]
        found = launcher.launch(tmp_path / str(count), runs, count=count, devices=4, draw=3)
        assert [code for code, *_ in found] == [0] * count, found[0][2][-3000:]
        decoded[count], drawn[count] = (
            [[process[1][run][part] for process in found] for run in range(2)] for part in (0, 1)
        )
    for run in range(2):
        for count in COUNTS:
            # Three batches and the two that are on their way to the devices.
            assert [len(rows) for rows in decoded[count][run]] == [5 * BATCH // count] * count
            together = collections.Counter(itertools.chain(*decoded[count][run]))
            assert together == collections.Counter(decoded[1][run][0]), "all of it, nothing twice"
            for step in range(3):
                batch = sorted(row for process in drawn[count][run] for row in process[step])
                assert batch == sorted(drawn[1][run][0][step])


@pytest.mark.slow
def test_both_stages_train_to_the_same_loss_on_one_two_and_four(launcher, configs, tmp_path):
    """The several go on from the one's checkpoint of step 2: the same data order on another number of processes."""
    found = launcher.launch(
        tmp_path / "one", [(config, tmp_path / f"1-{config.stage}") for config in configs], devices=4
    )
    assert [code for code, *_ in found] == [0], found[0][2][-3000:]
    for count in (2, 4):
        runs = []
        for config in configs:
            workdir = tmp_path / f"{count}-{config.stage}"
            shutil.copytree(tmp_path / f"1-{config.stage}" / "checkpoints" / "2", workdir / "checkpoints" / "2")
            runs.append((config, workdir))
        found = launcher.launch(tmp_path / f"log{count}", runs, count=count, devices=4)
        assert [code for code, *_ in found] == [0] * count, found[0][2][-3000:]
        for config in configs:
            expected = losses(tmp_path / f"1-{config.stage}")
            assert set(expected) == {1, 2, 3, 4}
            got = losses(tmp_path / f"{count}-{config.stage}")
            assert got == pytest.approx({step: expected[step] for step in (3, 4)}, abs=1e-5), json.dumps(found[0][1])
