"""Scores a checkpoint, no training: `--config.checkpoint=DIR --config.data.corpora=speech_folder:DIR`."""

from ml_collections import ConfigDict, config_dict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of an evaluation. What is None (or, of data, empty) is as in the run that trained the checkpoint."""
    if arg:
        raise ValueError(f"{arg!r}: there are no variants")
    base = common.base()
    config = ConfigDict()
    config.task = "evaluate"
    config.checkpoint = ""  # the workdir of a training run
    config.step = -1  # -1 is the newest
    config.mesh, config.distributed = base.mesh, base.distributed
    config.precision = _as_the_run(base.precision.to_dict())
    kept = _as_the_run({"max_unreadable": 0.01, "feature_cache": "", "feature_dtype": ""})
    config.data = ConfigDict({"corpora": "", "data_dir": "", "labels": "", "num_threads": 2, **kept})
    # The whole protocol; `--config.evaluate.include_languages=` (nothing) scores all languages.
    evaluation = common.evaluation()
    for key in ("every", "corpora"):
        del evaluation[key]
    config.evaluate = _as_the_run(evaluation)
    return config


def _as_the_run(values: dict) -> ConfigDict:
    """Keys of these types, to be given on the command line; None is what the run has."""
    return ConfigDict({key: config_dict.placeholder(type(value)) for key, value in values.items()})
