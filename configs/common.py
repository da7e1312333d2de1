"""Sections that every config shares. A value's type is its contract: overrides of another type are refused."""

from ml_collections import ConfigDict


def parse_arg(arg: str | None, separator: str = ",", **defaults: str) -> dict[str, str]:
    """'name' or 'key=value,key=value' → {key: value} over `defaults`; a bare name sets `variant`.

    Sweeps, whose values have commas, have another separator.

    Raises:
        ValueError: an unknown key.
    """
    out = dict(defaults)
    for item in filter(None, (arg or "").split(separator)):
        key, _, value = item.partition("=") if "=" in item else ("", "", item)
        key = key or "variant"
        if key not in defaults:
            raise ValueError(f"unknown key {key!r} in {arg!r}; there are {', '.join(defaults)}")
        out[key] = value
    return out


def base() -> ConfigDict:
    """Mesh, precision, optimiser, checkpoints, telemetry, data locations."""
    config = ConfigDict()
    config.task = "train"
    config.seed = 0
    # One size may be -1: the devices that the others leave.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "mode": "explicit", "replicated_limit": 0.02})
    # auto: bfloat16 where an accelerator is, float32 on CPU. Parameters, norms, softmax and losses are float32.
    config.precision = ConfigDict({"compute": "auto"})
    config.optim = ConfigDict(
        {
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "warmup": "50 steps",
            "b1": 0.9,
            "b2": 0.98,
            "eps": 1e-8,
            "weight_decay": 0.05,
            "clip_norm": 1.0,
            # (path regex, learning-rate multiplier): the first match wins, every parameter must match, 0 freezes.
            "groups": ((".*", 1.0),),
        }
    )
    # Budgets anywhere: '300 steps', '1e6 examples', '20 epochs', '100 hours' (of audio); '' is never.
    # A step whose loss or gradient is not finite changes nothing and counts as skipped; max_skipped of them in a row
    # end the run, with the utterances of the last one named and the state saved.
    # A run goes on with the data that it began with; others are refused unless changed ones are allowed.
    config.train = ConfigDict(
        {"budget": "", "batch_size": 48, "accumulate": 1, "max_skipped": 10, "allow_changed_data": False}
    )
    # content: "all", or "trainable" (adapters, mostly): what is frozen is then made again from where it came.
    config.checkpointing = ConfigDict({"every": "200 steps", "keep_latest": 2, "keep_every": "", "content": "all"})
    # A step, a save or an evaluator that takes longer than so many seconds prints the stacks of all threads (0: never),
    # and with stall_exit ends the process, so that what started it starts it again.
    config.telemetry = ConfigDict({"log_every": 20, "stall_seconds": 1800.0, "stall_exit": False})
    # Of runs of several processes. The coordinator's port, open between all hosts; seconds until a process that does
    # not come, is silent, or does not finish ends the others.
    config.distributed = ConfigDict(
        {"port": 8476, "initialization_timeout": 300, "heartbeat_timeout": 60, "shutdown_timeout": 300}
    )
    return config


def evaluation() -> dict:
    """The `evaluate` section: what is scored, and how."""
    return {
        "every": "",  # budget between evaluations while training; one follows the last step anyway
        "corpora": "",  # '' is data.corpora
        "include_languages": "",
        "exclude_languages": "",
        # Any of train, validation, test; auto: test, and validation of corpora that have no test split.
        "split": "auto",
        "label_space": "6",  # 4, 5, 6, 7 or a list such as 'angry,sad'
        # Utterances of other emotions are no part of the test set, so of no unlabelled statistics either.
        "closed_set": False,
        # Any of none, corpus, speaker, corpus_em, speaker_em: what is taken from the unlabelled utterances that are
        # scored (mser_jax/evaluation/zero_shot.py), each in rows of its own.
        "adapt": "none",
        "probes": False,  # how well the language and the speaker can be told from the embedding (stage 1)
        # The baseline of a run: a linear probe on its encoder's states, learned from what it is trained on (stage 1).
        "encoder_probe": False,
        "prompt_languages": "en,fr,de,it,zh,es",
        # Utterances that fit the temperature of the probabilities, of speakers who neither train nor are scored: of a
        # validation split, else of a few who are held back from training (mser_jax/data/held_back.py). 0: none is.
        "dev_utterances": 256,
        # Of an LLM (stage 2): questions a language; the prior that is subtracted (content_free is what it says where
        # nobody speaks: .07 UA less on M5SER-mini, where silence is no average of the emotions); how written answers
        # are read (exact, levenshtein; none is not at all).
        "paraphrases": 1,
        "prior": "none",
        "extractors": "exact,levenshtein",
        "batch_size": 64,
        "bootstrap_samples": 1000,
    }
