"""Stage 1: speech–text alignment.

Variants, comma-separated after a colon (`--config=configs/stage1.py:size=small,lolo=de`):
  size=NAME       sizes of a network that is trained from scratch: mini (default, a laptop), small
  real            for recordings of people instead of M5SER-mini: longer clips, augmentation, a longer budget
  NAME            pretrained towers (configs/pretrained.py): whisper_base_e5, whisper_large_v3_xlmr_large, …
  cache=auto|DIR  a frozen speech encoder runs once and its outputs are kept; augmentation of the audio is off
  lolo=LANGUAGE   leave one language out: it is kept from training, and scored with the four-class label space
"""

from ml_collections import ConfigDict

from configs import common, pretrained

# (speech and Q-Former: layers, width, heads, MLP), (text: the same), Q-Former blocks, queries, embedding, conv strides
SIZES = {
    "mini": ((4, 144, 4, 576), (2, 128, 4, 512), 2, 4, 128, (2, 2)),
    "small": ((6, 256, 4, 1024), (4, 256, 4, 1024), 2, 8, 256, (1, 2)),
}


def _set_networks(config: ConfigDict, size: str) -> None:
    if size not in SIZES:
        raise ValueError(f"size={size!r}: expected one of {', '.join(SIZES)}")
    speech, text, blocks, queries, embed_dim, conv_strides = SIZES[size]

    def shape(sizes: tuple[int, ...]) -> dict:
        return dict(zip(("num_layers", "width", "num_heads", "mlp_width"), sizes, strict=True))

    # `init` is a directory in Hugging Face format or a hub id: its config.json has the sizes. Where it is empty the
    # tower is of `family` and `sizes` (the fields of the family's config class) and starts from scratch.
    # `seen_by`: which model of mser_jax/corpora/seen_by.toml it is, or "none" (it saw no labels of emotion), where the
    # name of `init` does not tell.
    config.speech_encoder = ConfigDict(
        {
            "init": "",
            "seen_by": "",
            "family": "whisper",
            "sizes": {**shape(speech), "num_mels": 80, "conv_strides": conv_strides},
            "dropout": 0.0,
            "remat": "none",
        }
    )
    config.text_encoder = ConfigDict(
        {
            "init": "",
            "seen_by": "",
            "family": "bert",
            # 384 rows: ByT5's 256 bytes, its special tokens and sentinels.
            "sizes": {**shape(text), "vocab_size": 384, "max_positions": 512},
            "dropout": 0.0,
            "remat": "none",
            "tokenizer": "",  # "byt5" or a directory; '' is that of `init`, bytes where that is empty
        }
    )
    config.model = ConfigDict(
        {
            "qformer": {**shape((blocks, *speech[1:])), "num_queries": queries, "dropout": 0.0, "remat": "none"},
            "layer_mix_init": (),  # logits of the hidden states' mix, layers + 1 of them; () is all alike
            # Seconds of silence after each utterance, in which a pretrained encoder writes down what it heard.
            "trailing_silence": 0.0,
            "frame_pool": 1,  # neighbouring frames of the encoder that the Q-Former reads as one, their mean
            # Hidden units on the time-means of all layers, beside the Q-Former (0: none).
            "mean_head": {"width": 0, "dropout": 0.0},
            "embed_dim": embed_dim,
            "logit_scale_init": 1 / 0.07,
            "logit_scale_max": 100.0,
            "spec_augment": {"time_masks": 0, "time_width": 30, "freq_masks": 0, "freq_width": 12},
        }
    )
    # Adapters on every linear layer whose path matches the regex, e.g. 'speech_encoder/.*/(query|value)$'.
    config.lora = ConfigDict({"pattern": "", "rank": 8, "alpha": 16.0})


def _data() -> ConfigDict:
    return ConfigDict(
        {
            "data_dir": "",  # '' is TFDS's own default: $TFDS_DATA_DIR, else ~/tensorflow_datasets
            "corpora": "m5ser_mini",  # 'a,b@2,speech_folder:DIR': comma-separated, @ is a weight
            "include_languages": "",
            "exclude_languages": "fa,pl",  # the two languages of M5SER-mini that nobody trains on
            "split": "train",  # utterances without a split belong to every split
            "emotions": "",  # '' is every canonical label
            "labels": "",  # a labels.toml that maps native labels to emotions (mser_jax/corpora/label_map.py)
            # Seconds; longer clips are cut to the last. Several classes are cheaper, but a batch then holds clips of
            # one class only, and how long a sentence takes is a cue: one class scored .04 UA higher here (one seed).
            "length_classes": (3.0,),
            "temperature": 1.0,  # of the languages' shares: weight ∝ examples^(1/temperature)
            "balance_emotions": True,
            "pair_languages": True,  # every second utterance repeats the one before in another language
            # States of a frozen speech encoder are computed once and kept: '' is off, "auto" beside the corpus's
            # records, else a directory. float32 is exact and twice as large.
            "feature_cache": "",
            "feature_dtype": "float16",
            # Share of the records that may turn out not to be decodable, in training and in evaluation: they are
            # skipped and counted. More of them end the run; one record never does.
            "max_unreadable": 0.01,
            "num_workers": 0,  # processes; 0 is threads
            "num_threads": 2,
            "prefetch": 4,
            "max_tokens": 64,
            # Off: M5SER-mini's emotions are rules for pitch, rate and level, which these blur. `real` has them on.
            "augment": {
                "random_crop": True,  # of clips that are too long; else the middle
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
    options = common.parse_arg(arg, variant="", size="mini", cache="", lolo="")
    variants = ("real", *pretrained.PRESETS)
    if options["variant"] not in ("", *variants):
        raise ValueError(
            f"no variant {options['variant']!r}; there are {', '.join(variants)}, size=NAME, cache=auto, lolo=LANGUAGE"
        )
    config = common.base()
    config.stage = "alignment"
    _set_networks(config, options["size"])
    config.train.budget = "350 steps"
    # The towers take a batch in so many parts and compute each again in the backward pass: the same loss and gradients
    # with the activations of one part.
    config.train.encoder_microbatches = 1
    config.data = _data()
    # Σ weight × term; 0 switches a term off.
    config.loss = ConfigDict(
        {
            "speech_text": 1.0,
            "positives": "masked",  # or "multi_positive"
            # Of all contrastive terms: the same numbers by "dense", "gathered" or "ring" (a batch of any size); "auto"
            # goes by the global batch.
            "implementation": "auto",
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
    if options["variant"]:
        _for_recordings(config)
    if options["variant"] in pretrained.PRESETS:
        pretrained.PRESETS[options["variant"]](config)
    if options["cache"]:
        config.data.feature_cache = options["cache"]
        config.data.augment.update({"random_crop": False, "speed": 0.0, "gain_db": 0.0, "noise_probability": 0.0})
    if options["lolo"]:
        config.data.exclude_languages = options["lolo"]
        config.evaluate.include_languages = options["lolo"]
        config.evaluate.label_space = "4"
        config.evaluate.adapt = "none,corpus,speaker,corpus_em,speaker_em"
        config.evaluate.closed_set = True
    return config


def _for_recordings(config: ConfigDict) -> None:
    """Recordings are yours to name, by --config.data.corpora=speech_folder:DIR; without it the run says so."""
    config.data.corpora = ""
    config.data.exclude_languages = ""
    config.data.length_classes = (2.0, 3.0, 4.5)
    config.data.augment.update({"speed": 0.1, "gain_db": 6.0, "noise_probability": 0.3})
    config.train.budget = "500 steps"
