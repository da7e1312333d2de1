"""Annotations in which anything stands anywhere: a build or one of the errors that callers print, never another."""

import copy
import json
import random

import miniature
import pytest

from mser_jax.corpora import registry

ANYTHING = (None, 1, -1.5, "", [], {}, "x", "\ud800", True, "1e999", "nan", ["a"], {"a": 1})
M3ED = {"Speaker": "A", "Text": "好", "EmoAnnotation": {"EmoAnnotator1": "Anger", "final_main_emo": "Anger"}}
THAI = [f"s001_con_actor001_impro1_{n}.flac" for n in range(20)]
CONTENT = {
    "m3ed": {
        "anjia": {
            "anjia_1": {
                "SpeakerInfo": {"A": {"Name": "王", "Gender": "female"}},
                "Dialog": {f"anjia_1_{n}": M3ED for n in range(30)},
            }
        }
    },
    "thai_ser": {name: [{"majority_emo": "Sad", "annotated": [["Sad"], ["Sad", "Angry"]]}] for name in THAI},
    "pavoque": [
        {"prompt": f"p{n}", "style": "poker", "text": "t", "start": f"{n / 4}", "end": f"{n / 4 + 0.2}"}
        for n in range(30)
    ],
    "emobox:savee": [
        {"key": f"savee-DC_a{n:02}", "wav": f"downloads/savee/DC/a{n:02}.wav", "emo": "a"} for n in range(1, 16)
    ],
}


def nodes(value):
    """(container, key) of everything in a JSON value."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from nodes(value[key])


def download(corpus, folder):
    """A miniature without its annotation; where that goes, and how it is written."""
    if corpus == "m3ed":
        miniature.write(folder, [f"modality_speech/A_anjia_1_{n}.wav" for n in range(30)], seconds=0.12)
        (folder / "splitInfo").mkdir()
        for part in ("train", "val", "test"):
            (folder / "splitInfo" / f"movie_list_{part}.txt").write_text("anjia" * (part == "train"))
        return folder / "annotation.json", json.dumps
    if corpus == "thai_ser":
        miniature.write(folder, THAI, seconds=0.12, audio_format="FLAC")
        return folder / "emotion_label.json", json.dumps
    if corpus == "pavoque":
        miniature.write(folder, ["pavoque-poker.flac"], seconds=8, audio_format="FLAC")
        return folder / "pavoque-poker.yaml", json.dumps  # JSON is YAML
    miniature.write(folder / "downloads" / "savee", [f"DC/a{n:02}.wav" for n in range(1, 16)], seconds=0.12)
    lists = folder / "data" / "savee" / "fold_1" / "savee_test_fold_1.jsonl"
    lists.parent.mkdir(parents=True)
    return lists, lambda rows: "\n".join(map(json.dumps, rows))


@pytest.mark.slow
@pytest.mark.parametrize("corpus", CONTENT)
def test_anything_anywhere_in_an_annotation(corpus, tmp_path):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    draw = random.Random(seed)
    path, written = download(corpus, tmp_path / "source")
    for number in range(60):
        content = copy.deepcopy(CONTENT[corpus])
        for _ in range(draw.randint(1, 3)):
            container, key = draw.choice(list(nodes(content)))
            container[key] = copy.deepcopy(draw.choice(ANYTHING))
        path.write_text(written(content), encoding="utf-8")
        source, data = str(tmp_path / "source"), str(tmp_path / f"data{number}")
        try:
            builder = registry.corpus_builder(corpus, data, source, allow_partial=True)
            builder.prepare()
            assert len(builder.index()) == json.loads(builder.report_path.read_text())["built"]
        except (ValueError, OSError, RuntimeError) as error:
            assert str(path) in str(error) or corpus.partition(":")[0] in str(error), "names what is wrong"
