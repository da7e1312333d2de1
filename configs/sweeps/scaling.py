"""A ladder of stage 1 models from scratch × budgets in examples: what a scaling law is fitted to.

`configs/sweeps/scaling.py:variant=real;widths=72,144,216,324;budgets=2e4,6e4,2e5;seeds=0`. Depth grows with the width,
and the learning rate falls with its square root.
"""

from configs import common

REFERENCE_WIDTH = 144  # of configs/stage1.py:size=mini


def sizes(width: int) -> dict[str, int]:
    """Layers, width, heads and MLP of a tower: a layer and a head for every 36 of width."""
    if width % 36:
        raise ValueError(f"widths={width}: expected multiples of 36, a head's width")
    return {"num_layers": width // 36, "width": width, "num_heads": width // 36, "mlp_width": 4 * width}


def get_rows(arg: str | None = None) -> list[dict]:
    """Rows {"name", "config", "overrides"}, the cheapest first."""
    options = common.parse_arg(arg, ";", variant="", widths="72,144,216,324", budgets="2e4,6e4,2e5", seeds="0")
    rows = []
    for budget in sorted(options["budgets"].split(","), key=float):
        for width in map(int, options["widths"].split(",")):
            tower = sizes(width)
            overrides = {f"speech_encoder.sizes.{key}": value for key, value in tower.items()}
            overrides |= {f"text_encoder.sizes.{key}": value for key, value in tower.items()}
            overrides |= {f"model.qformer.{key}": value for key, value in {**tower, "num_layers": 2}.items()}
            overrides["optim.learning_rate"] = round(1e-3 * (REFERENCE_WIDTH / width) ** 0.5, 6)
            overrides["train.budget"] = f"{budget} examples"
            config = "configs/stage1.py" + (f":{options['variant']}" if options["variant"] else "")
            for seed in options["seeds"].split(","):
                name = f"width_{width}/budget_{budget}/seed_{seed}"
                rows.append({"name": name, "config": config, "overrides": {**overrides, "seed": int(seed)}})
    return rows
