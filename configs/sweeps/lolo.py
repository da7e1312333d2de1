"""Leave one language out: for each language runs that never hear it, scored on it with four classes.

`configs/sweeps/lolo.py:corpora=speech_folder:DIR;stage=1;variant=real;languages=de,en,es,it,pl,zh;seeds=0;init=RUNS`:
all of them may be left out; with stage=2 a run starts from the stage 1 run RUNS/LANGUAGE/seed_N, if `init` is given.
"""

from configs import common


def get_rows(arg: str | None = None) -> list[dict]:
    """Rows {"name", "config", "overrides"}, seed by seed, called LANGUAGE/seed_N."""
    options = common.parse_arg(
        arg, ";", variant="real", stage="1", languages="de,en,es,it,pl,zh", seeds="0", init="", corpora=""
    )
    rows = []
    for seed in options["seeds"].split(","):
        for language in options["languages"].split(","):
            name = f"{language}/seed_{seed}"
            overrides = {"seed": int(seed)}
            if options["corpora"]:
                overrides["data.corpora"] = options["corpora"]
            if options["init"]:
                overrides["init_from"] = f"{options['init']}/{name}"
            config = f"configs/stage{options['stage']}.py:{options['variant']},lolo={language}"
            rows.append({"name": name, "config": config, "overrides": overrides})
    return rows
