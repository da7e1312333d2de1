"""Stage 1's loss, one term at a time: all of them, without each, and the first alone.

`configs/sweeps/ablation.py:variant=whisper_base_e5,cache=auto;seeds=0,1,2` (options of configs/stage1.py; semicolons).
"""

from configs import common

WITHOUT = {
    "all": {},
    "without_supcon": {"loss.supcon": 0.0},
    "without_cross_language": {"loss.cross_language_weight": 1.0},
    "without_parallel": {"loss.parallel": 0.0},
    "without_adversary": {"loss.adversary_language": 0.0, "loss.adversary_speaker": 0.0},
    "without_language_pairs": {"data.pair_languages": False},
    "multi_positive": {"loss.positives": "multi_positive"},
}
ALONE = WITHOUT["without_supcon"] | WITHOUT["without_parallel"] | WITHOUT["without_adversary"]


def get_rows(arg: str | None = None) -> list[dict]:
    """Rows {"name", "config", "overrides"}; a folder a term and in it one a seed."""
    options = common.parse_arg(arg, ";", variant="", seeds="0")
    config = "configs/stage1.py" + (f":{options['variant']}" if options["variant"] else "")
    return [
        {"name": f"{name}/seed_{seed}", "config": config, "overrides": {**overrides, "seed": int(seed)}}
        for name, overrides in {**WITHOUT, "speech_text_alone": ALONE}.items()
        for seed in options["seeds"].split(",")
    ]
