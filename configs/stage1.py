"""Stage 1: speech–text alignment.

Variants, comma-separated after a colon (`--config=configs/stage1.py:size=small,lolo=de`):
  size=NAME       sizes of the network: mini (default, a laptop), small, whisper_base (Whisper-base's and E5-small's)
  real            for recordings of people instead of M5SER-mini: longer clips, augmentation, a longer budget
  lolo=LANGUAGE   leave one language out: it is kept from training, and scored with the four-class label space
"""

from ml_collections import ConfigDict

from configs import common

# (speech and Q-Former: layers, width, heads, MLP), (text: the same), Q-Former blocks, queries, embedding, conv strides
SIZES = {
    "mini": ((4, 144, 4, 576), (2, 128, 4, 512), 2, 4, 128, (2, 2)),
    "small": ((6, 256, 4, 1024), (4, 256, 4, 1024), 2, 8, 256, (1, 2)),
    "whisper_base": ((6, 512, 8, 2048), (12, 384, 12, 1536), 2, 16, 256, (1, 2)),
}


def _model(size: str) -> ConfigDict:
    if size not in SIZES:
        raise ValueError(f"size={size!r}: expected one of {', '.join(SIZES)}")
    speech, text, blocks, queries, embed_dim, conv_strides = SIZES[size]

    def tower(shape: tuple[int, ...]) -> dict:
        names = ("num_layers", "width", "num_heads", "mlp_width")
        return {**dict(zip(names, shape, strict=True)), "dropout": 0.0, "remat": "none"}

    return ConfigDict(
        {
            "speech": {**tower(speech), "num_mels": 80, "conv_strides": conv_strides},
            # 384 rows: ByT5's 256 bytes, its special tokens and sentinels.
            "text": {**tower(text), "vocab_size": 384, "max_positions": 512},
            "qformer": {**tower((blocks, *speech[1:])), "num_queries": queries},
            "embed_dim": embed_dim,
            "logit_scale_init": 1 / 0.07,
            "logit_scale_max": 100.0,
            "tokenizer": "byt5",
            "spec_augment": {"time_masks": 0, "time_width": 30, "freq_masks": 0, "freq_width": 12},
        }
    )


def _data() -> ConfigDict:
    return ConfigDict(
        {
            "data_dir": "",  # '' is TFDS's own default: $TFDS_DATA_DIR, else ~/tensorflow_datasets
            "corpora": "m5ser_mini",  # 'a,b@2,speech_folder:DIR': comma-separated, @ is a weight
            "include_languages": "",
            "exclude_languages": "fa,pl",  # the two languages of M5SER-mini that nobody trains on
            "split": "train",  # utterances without a split belong to every split
            "emotions": "",  # '' is every canonical label
            # Seconds; longer clips are cut to the last. Several classes are cheaper, but a batch then holds clips of
            # one class only, and how long a sentence takes is a cue: one class scored .04 UA higher here (one seed).
            "length_classes": (3.0,),
            "temperature": 1.0,  # of the languages' shares: weight ∝ examples^(1/temperature)
            "balance_emotions": True,
            "pair_languages": True,  # every second utterance repeats the one before in another language
            "num_workers": 0,  # processes; 0 is threads
            "num_threads": 2,
            "prefetch": 4,
            "max_tokens": 64,
            # Off: M5SER-mini's emotions are rules for pitch, rate and level, which these blur. `real` has them on.
            "augment": {
                "speed": 0.0,
                "speed_probability": 0.5,
                "gain_db": 0.0,
                "gain_probability": 0.5,
                "noise_snr_db": (10.0, 30.0),
                "noise_probability": 0.0,
            },
            # Shares of the kinds of caption, and the languages of the templates.
            "captions": {
                "emotion": 1.0,
                "facts": 0.5,
                "acoustics": 0.25,
                "transcript_probability": 0.1,
                "languages": "en,fr,de,it,zh,es",
            },
        }
    )


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of stage 1; `arg` as in the module's docstring."""
    options = common.parse_arg(arg, variant="", size="mini", lolo="")
    if options["variant"] not in ("", "real"):
        raise ValueError(f"no variant {options['variant']!r}; there are real, size=NAME, lolo=LANGUAGE")
    config = common.base()
    config.stage = "alignment"
    config.model = _model(options["size"])
    config.train.budget = "350 steps"
    config.data = _data()
    # Σ weight × term; 0 switches a term off.
    config.loss = ConfigDict(
        {
            "speech_text": 1.0,
            "positives": "masked",  # or "multi_positive"
            "implementation": "gathered",  # or "dense"
            "supcon": 1.0,
            "supcon_temperature": 0.1,
            "cross_language_weight": 2.0,
            "parallel": 0.1,
            "adversary_language": 0.02,
            "adversary_speaker": 0.02,
            "adversary_domain": 0.0,
        }
    )
    config.evaluate = ConfigDict(common.evaluation())
    if options["variant"] == "real":
        _for_recordings(config)
    if options["lolo"]:
        config.data.exclude_languages = options["lolo"]
        config.evaluate.include_languages = options["lolo"]
        config.evaluate.label_space = "4"
        config.evaluate.adapt = "none,corpus,speaker"
    return config


def _for_recordings(config: ConfigDict) -> None:
    """Recordings are yours to name, by --config.data.corpora=speech_folder:DIR; without it the run says so."""
    config.data.corpora = ""
    config.data.exclude_languages = ""
    config.data.length_classes = (2.0, 3.0, 4.5)
    config.data.augment.update({"speed": 0.1, "gain_db": 6.0, "noise_probability": 0.3})
    config.train.budget = "500 steps"
