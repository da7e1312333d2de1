"""Stage 2: an LLM reads what stage 1's Q-Former heard, and answers questions about it.

    python -m mser_jax.main --config=configs/stage2.py --workdir=DIR --config.init_from=STAGE1_WORKDIR

Variants, comma-separated after a colon (`--config=configs/stage2.py:lolo=de`); those of a run and of the stage 1 run it
starts from belong together:
  size=NAME       after a stage 1 run of that size (configs/stage1.py); a byte-level decoder is trained from scratch
  real            the same after `stage1.py:real`, for recordings of people
  NAME            pretrained towers (configs/pretrained.py): whisper_base_gemma, after `stage1.py:whisper_base_e5`; …
  cache=auto|DIR  a frozen speech encoder runs once and its outputs are kept; augmentation of the audio is off
  lolo=LANGUAGE   leave one language out: it is kept from training, and scored with the four-class label space
"""

from ml_collections import ConfigDict

from configs import common, pretrained, stage1


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of stage 2; `arg` as in the module's docstring."""
    options = common.parse_arg(arg, variant="", size="mini", cache="", lolo="")
    variant = options.pop("variant")
    if variant not in ("", "real", *pretrained.STAGE2):
        raise ValueError(
            f"no variant {variant!r}; there are real, {', '.join(pretrained.STAGE2)}, size=NAME, cache=auto, "
            "lolo=LANGUAGE"
        )
    before, change = pretrained.STAGE2.get(variant, (variant, None))
    # Speech side, data and evaluation are those of the run it starts from.
    config = stage1.get_config(",".join(filter(None, (before, *(f"{key}={value}" for key, value in options.items())))))
    config.stage = "finetuning"
    del config.text_encoder, config.loss, config.data.captions, config.data.max_tokens
    del config.train.encoder_microbatches
    shared = ("qformer", "layer_mix_init", "frame_pool", "trailing_silence", "mean_head", "embed_dim", "spec_augment")
    config.model = ConfigDict({key: config.model[key] for key in shared})
    # The workdir of a stage 1 run: speech encoder, layer mix, Q-Former and embedding start from its newest checkpoint.
    config.init_from = ""
    # `init` is a directory in Hugging Face format or a hub id; where it is empty, such a decoder starts from scratch.
    config.llm = ConfigDict(
        {
            "init": "",
            "seen_by": "",  # as in configs/stage1.py
            "family": "llm",
            "sizes": {
                "num_layers": 2, "width": 128, "num_heads": 4, "num_kv_heads": 4, "head_dim": 32, "mlp_width": 384,
                "vocab_size": 384,
            },
            "dropout": 0.0,
            "remat": "none",
            "tokenizer": "",  # "byt5" or a directory; '' is that of `init`, bytes where that is empty
        }
    )  # fmt: skip
    config.data.pair_languages = False
    # Shares of what is asked. A step asks for the transcript alone (`long`), or for any of the others (`short`).
    config.data.tasks = ConfigDict({"emotion": 1.0, "language": 0.1, "acoustics": 0.2, "transcript": 0.0})
    # (tokens of a row, speech and answer included; tokens of its answer).
    config.data.sequences = ConfigDict({"short": (88, 36), "long": (120, 80)})
    config.data.question_languages = "en,fr,de,it,zh,es"
    # Where the speech encoder learns it forgets what it heard in stage 1.
    config.optim.groups = (("^speech_encoder/", 0.0), (".*", 1.0))
    config.train.budget = "250 steps"
    if change:
        change(config)
    return config
