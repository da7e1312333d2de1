"""Scores a checkpoint, no training: `--config.checkpoint=DIR --config.data.corpora=speech_folder:DIR`."""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of an evaluation. What is empty is taken from the config that the checkpoint was trained with."""
    if arg:
        raise ValueError(f"{arg!r}: there are no variants")
    base = common.base()
    config = ConfigDict()
    config.task = "evaluate"
    config.checkpoint = ""  # the workdir of a training run
    config.step = -1  # -1 is the newest
    config.mesh, config.precision, config.distributed = base.mesh, base.precision, base.distributed
    cache = {"feature_cache": "", "feature_dtype": "float16"}  # as in configs/stage1.py
    reading = {"num_threads": 2, "max_unreadable": 0.01}
    config.data = ConfigDict({"corpora": "", "data_dir": "", "labels": "", **reading, **cache})
    evaluation = common.evaluation()
    for key in ("every", "corpora"):
        del evaluation[key]
    # A model answers the questions that it was taught: an LLM that heard only English ones, no others.
    of_the_run = ("split", "label_space", "prompt_languages", "prior", "extractors")
    config.evaluate = ConfigDict({**evaluation, **dict.fromkeys(of_the_run, "")})
    return config
