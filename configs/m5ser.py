"""What speech is made: `python -m mser_jax.m5ser --config=configs/m5ser.py[:six] --workdir=DIR`."""

from ml_collections import ConfigDict

from configs import common
from mser_jax.m5ser import filters


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of a generated data set. `:six`: six languages × six emotions, 1000 hours; give it more texts."""
    variant = common.parse_arg(arg, variant="")["variant"]
    if variant not in ("", "six"):
        raise ValueError(f"no variant {variant!r}; there is six")
    config = ConfigDict()
    config.task = "generate"  # by mser_jax.m5ser, not by mser_jax.main
    config.seed = 0
    # '600 utterances' or '20 hours' of audio that passes, foretold from one chunk to about 1 %; cut to whole rounds (a
    # block of every language), so that it stays balanced. May be raised later: the folder's data set then grows.
    config.limit = "600 utterances"
    config.languages = "en,fr,de,it,zh,es"
    config.emotions = "angry,fear,happy,neutral,sad,surprise"
    config.intensities = (0.6, 0.8, 1.0, 1.2)  # 0: neutral prosody, 1: the engine's own idea of the emotion
    config.texts = ConfigDict(
        {
            # reader or reader:PATH, separated by commas: sentences (our own), xed:DIR, brighter:DIR, goemotions:DIR,
            # tsv:FILE with the columns text, language, emotion, parallel_id.
            "sources": "sentences",
            "min_length": 10,  # characters, a Han character counts as three
            "max_length": 100,
            "near_duplicates": 0.8,  # similarity of the words from which the later of two is left out; 1: equal ones
            "check_language": True,
        }
    )
    config.engines = ConfigDict(_engines())
    # Of audio: thresholds as mser_jax/m5ser/filters explains them; two need a model's path and are off without.
    config.filters = ConfigDict(filters.DEFAULTS)
    # Where one emotion of the same words, voice and intensity is rejected, so are the others.
    config.keep_balanced = True
    # card.html and card.md at the end; real: prepared corpora to compare with, e.g. "ravdess,emodb".
    config.card = ConfigDict({"enabled": True, "real": ""})
    # What is made, kept or repeated as a whole, by one worker, and lies in one record file.
    config.chunk_utterances = 600
    if variant == "six":
        config.limit = "1000 hours"
        config.chunk_utterances = 2400
    return config


def _engines() -> dict[str, ConfigDict]:
    """Sections by name; a further one, with the option `engine`, may use the same engine once more."""
    return {
        "espeak": _engine("m1,m2,m3,m4,m5,m7,m8,f1,f2,f4,f5", "m6,f3"),
        # mser_jax/m5ser/kokoro.py. directory holds kokoro-v1.0.int8.onnx and voices-v1.0.bin.
        "kokoro": _engine(enabled=False, directory="", mixes="", borrowed="", threads=1),
        # mser_jax/m5ser/openai_http.py. voices: "anna,ben" with languages="en,de", or "en: anna, ben; de: carla".
        # world=True where the model knows no emotions: they are rendered afterwards.
        "openai_http": _engine(
            enabled=False, url="", model="", name="", api_key_env="", voices="", languages="", instructions="",
            instruct_in="en", input="{text}", response_format="wav", sampling_rate=0, concurrency=4,
            requests_per_minute=0.0, timeout_seconds=120.0, attempts=6, cache="", world=False,
        ),
        # mser_jax/m5ser/command.py. argv: "say --voice={voice} --mood={emotion} --out={out} {text}".
        "command": _engine(
            enabled=False, argv="", name="", version="", voices="", languages="", timeout_seconds=120.0,
            concurrency=1, world=False,
        ),
    }  # fmt: skip


def _engine(voices: str = "", held_out: str = "", *, enabled: bool = True, **options) -> ConfigDict:
    """An engine's section. No voices: all that it has. Those held out make up the split 'validation'."""
    return ConfigDict({"enabled": enabled, "voices": voices, "validation_voices": held_out, "options": options})
