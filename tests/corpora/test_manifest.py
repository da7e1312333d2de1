"""Manifests as people have them: read where it is plain what was meant, else one line that names file and line."""

import json
import os
import re
import unicodedata

import pytest

from mser_jax.corpora.folder import files, manifest

ROW = {"path": "a.wav", "language": "de", "emotion": "sad"}


@pytest.fixture
def folder(tmp_path):
    """A folder with a few files that stand for recordings."""
    for name in ("a.wav", "b.wav", "sub/c.wav"):
        path = tmp_path / "f" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "f"


def rows(folder, content, **keywords):
    """Writes the manifest (bytes, text, or rows) and reads it."""
    if isinstance(content, list):
        content = "\n".join(json.dumps(row) for row in content)
    data = content if isinstance(content, bytes) else content.encode()
    (folder / "manifest.jsonl").write_bytes(data)
    return manifest.read_manifest(folder, **keywords)


def refused(folder, content, **keywords):
    """The one line with which it is refused."""
    with pytest.raises(ValueError) as caught:
        rows(folder, content, **keywords)
    message = str(caught.value)
    assert str(folder / "manifest.jsonl") in message
    return message


def one(folder, **changes):
    """Fields of the only row, changed from ROW."""
    (row,) = rows(folder, [ROW | changes])
    return row.fields


TEXT = "".join(
    json.dumps(ROW | {"path": path, "transcript": "żółć 怒"}, ensure_ascii=False) + "\n" for path in ("a.wav", "b.wav")
)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le with mark", "utf-16-be with mark"]
)
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r", "\n\n \n"])
def test_encodings_and_line_ends(folder, encoding, ends):
    encoding, _, mark = encoding.partition(" ")
    text = ("\ufeff" if mark else "") + TEXT.replace("\n", ends)
    found = rows(folder, text.encode(encoding))
    assert [row.fields["transcript"] for row in found] == ["żółć 怒"] * 2
    assert found[0].line == 1


def test_files_that_were_joined(folder):
    first, second = TEXT.splitlines()
    joined = (first + "\n").encode("utf-8-sig") + second.encode("utf-8-sig") + b"\r\n" + b"\xef\xbb\xbf"
    assert [row.line for row in rows(folder, joined)] == [1, 2]


LINE = json.dumps(ROW)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{LINE}\n{LINE[:-1]}".encode() + ', "age": "fröh"}'.encode("cp1252"), "line 2: byte 0xf6 .*fröh.*iconv"),
        (f"{LINE}\r".encode() + b"\xff", "line 2: byte 0xff at offset"),
        (LINE.encode("utf-16-le"), "UTF-16 without its byte order mark"),
        (b"\xff\xfe" + LINE.encode("utf-16-le") + b"x", "is not UTF-16-LE"),
        (f"{LINE}\n".encode() + LINE.encode("utf-16-le"), "line 2: NUL at column 2"),
        (LINE.encode() + b"\n" + b"\0" * 500, "line 2: NUL at column 1"),
        (LINE.replace("sad", "s\0ad").encode(), "line 1: NUL at column"),
        (f"[{LINE}, {LINE}]", r"line 1: .*One JSON array.*jq -c '\.\[\]'"),
        (f"[\n{LINE},\n{LINE}\n]", "line 1: .*One JSON array"),
        (json.dumps(ROW, indent=1), "line 1: not JSON.*over several lines"),
        ("path,language,emotion\na.wav,de,sad\n", "line 1: not JSON.*CSV"),
        ("path\tlanguage\na.wav\tde\n", "line 1: not JSON.*CSV"),
        (f"{LINE},\n{LINE}", "line 1: not JSON.*without a comma"),
        (LINE[:-1] + ",}", "line 1: not JSON.*no comma before a closing bracket"),
        (LINE + LINE, "line 1: not JSON.*One object a line"),
        (str(ROW), "line 1: not JSON.*double quotes"),
        (LINE + "\n" + LINE[:20], "line 2: not JSON.*cut off"),
        ('{"path": "a.wav", "emotion": "sad", "language": "de", "emotion": "angry"}', "'emotion' comes twice"),
        (LINE[:-1] + ', "votes": {"sad": 1, "sad": 2}}', "'sad' comes twice"),
        ("[" * 100_000, "line 1: "),
        ('{"a":' * 100_000, "nested too deep"),
        ("7", "line 1: expected a JSON object, got '7'"),
        (b"PK\x03\x04 and so on", "a spreadsheet"),
        (b"\x1f\x8b\x08", "compressed by gzip"),
        (b"PAR1....", "Parquet"),
        (b"BZh91AY", "compressed by bzip2"),
        (b"\xd0\xcf\x11\xe0" + bytes(60), "a spreadsheet"),
        (b"SQLite format 3" + bytes(60), "SQLite"),
        (b"\x93NUMPY\x01" + bytes(60), "line 1: byte 0x93"),
        ('{"path": "a.wav"}\n'.encode("utf-16-le"), "iconv -f UTF-16LE"),
        ('{"path": "a.wav"}\n'.encode("utf-16-be"), "iconv -f UTF-16BE"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("", "is empty"),
        ("\ufeff\r\n", "is empty"),
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_refused_by_line(folder, content, message):
    said = refused(folder, content)
    assert re.search(message, said), said
    assert len(said) < 1500


def test_a_long_line_is_not_repeated(folder):
    assert len(refused(folder, LINE[:-1] + "," + "x" * 5_000_000)) < 500
    assert "transcript: 200000 characters" in refused(folder, [ROW | {"transcript": "x" * 200_000}])
    assert "speaker: 5000 characters" in refused(folder, [ROW | {"speaker": "x" * 5000}])


@pytest.mark.parametrize("empty", [None, float("nan"), "nan", "NaN", "<NA>", "None", "NA", "null", "", " "])
def test_empty_cells_are_missing(folder, empty):
    names = ("speaker", "gender", "age", "corpus", "parallel_id", "split", "valence", "votes", "domain", "license")
    fields = one(folder, **dict.fromkeys(names, empty))
    assert fields == {"id": "a.wav", "speaker": "", "language": "de", "emotion_native": "sad"}
    if empty not in ("", "nan", " "):
        assert "required field 'language' is missing" in refused(folder, [ROW | {"language": empty}])


def test_empty_cells_that_are_words(folder):
    for word in ("null", "None", "NA"):
        assert one(folder, transcript=word, emotion=word)["transcript"] == word
    assert "transcript" not in one(folder, transcript=float("nan"))
    assert "transcript" not in one(folder, transcript="NaN")
    for empty in (float("nan"), "nan", None):
        assert "required field 'emotion' is missing" in refused(folder, [ROW | {"emotion": empty}])
    assert one(folder, emotion="")["emotion_native"] == ""
    assert one(folder, speaker="Unknown")["speaker"] == ""
    said = refused(folder, [ROW | {"language": "nan"}])
    assert "empty cell" in said and "nan-TW" in said
    assert one(folder, language="nan-TW")["language"] == "nan-TW"


@pytest.mark.parametrize(
    ("tag", "hint"),
    [
        ("pt_BR", "'pt-BR'"), ("EN", "'en'"), ("english", "'en'"), ("Deutsch", "'de'"), ("eng", "'en'"),
        ("ger", "'de'"),
        ("jp", "'ja'"), ("cn-CN", "'zh-CN'"), ("xx", "not a code of a language"), ("e", "expected BCP-47"),
        (["de"], "language: expected text"), (7, "expected BCP-47"), (True, "language: expected text"),
    ],
)  # fmt: skip
def test_languages_are_told_what_to_write(folder, tag, hint):
    assert hint in refused(folder, [ROW | {"language": tag}])


def test_case_of_subtags_is_one(folder):
    for tag in ("pt-br", "pt-BR", "pt-Br"):
        assert one(folder, language=tag)["language"] == "pt-BR"
    assert one(folder, language="zh-hans-cn")["language"] == "zh-Hans-CN"
    assert one(folder, language=" de ")["language"] == "de"


def test_speakers_are_the_same_however_they_are_typed(folder):
    for value in (1, 1.0, "1", "1.0", " 1 ", "\t1"):
        assert one(folder, speaker=value)["speaker"] == "1"
    assert (
        one(folder, speaker="José")["speaker"] == one(folder, speaker=unicodedata.normalize("NFD", "José"))["speaker"]
    )
    assert one(folder, speaker="01")["speaker"] == "01"
    assert one(folder, age=30.0)["age"] == one(folder, age="30.0")["age"] == "30"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speaker": True}, "speaker: expected text, got True"),
        ({"speaker": {"id": 1}}, "speaker: expected text"),
        ({"transcript": ["a"]}, "transcript: expected text"),
        ({"age": float("inf")}, "age: expected text, got inf"),
        ({"valence": float("inf")}, "valence: expected a finite number"),
        ({"valence": 10**400}, "valence: expected a finite number, got a very large integer"),
        ({"valence": "3,5"}, "valence: expected a number, got '3,5'"),
        ({"valence": "1_0"}, "valence: expected a number"),
        ({"votes": [1]}, "votes: expected an object"),
        ({"votes": "many"}, "votes: expected an object"),
        ({"votes": {"sad": float("nan")}}, "votes: expected numbers"),
        ({"split": "Train"}, "split 'Train'"),
        ({"transcript": "\ud83d!"}, "half of a surrogate pair"),
        ({"path": "a\ud83d.wav"}, "half of a surrogate pair"),
        ({"path": 7}, "path: expected text, got 7"),
        ({"path": None}, "required field 'path'"),
        ({"path": "."}, "is the folder itself"),
        ({"emotion": None}, "required field 'emotion' is missing, write \"\" where"),
        ({"path": "a\n.wav"}, "control character '\\n'"),
        ({"path": "a\0.wav"}, "control character"),
        ({"path": "s3://bucket/a.wav"}, "nothing is read from s3://"),
        ({"path": "C:\\speech\\a.wav"}, "one of Windows"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_refused_by_line(folder, changes, message):
    said = refused(folder, [ROW | {"path": "b.wav"}, ROW | changes])
    assert "line 2" in said and message in said


def test_a_manifest_with_other_names_of_fields(folder):
    said = refused(folder, [{"audio_filepath": "a.wav", "text": "ja", "lang": "de"}])
    assert "required field 'path' is missing; the line has 'audio_filepath, text, lang'" in said


def test_values_that_can_be(folder):
    fields = one(folder, valence="3.5", votes='{"sad": 2}', transcript="zwei\nZeilen", arousal=2)
    assert (fields["valence"], fields["arousal"]) == (3.5, 2.0)
    assert (fields["votes"], fields["transcript"]) == ('{"sad": 2}', "zwei Zeilen")


@pytest.mark.parametrize("path", ["./a.wav", "sub/../a.wav", ".//a.wav", "a.wav/", "{folder}/a.wav", "x/../a.wav"])
def test_one_recording_has_one_path(folder, path):
    path = path.format(folder=folder)
    assert rows(folder, [ROW | {"path": path}])[0].fields["id"] == "a.wav"
    assert "'a.wav' was already listed in line 1" in refused(folder, [ROW, ROW | {"path": path}])


def test_backslashes_and_unicode_forms(folder):
    (found,) = rows(folder, [ROW | {"path": "sub\\c.wav"}])
    assert (found.fields["id"], found.file.missing) == ("sub/c.wav", "")
    (folder / "odd\\name.wav").write_bytes(b"1")
    (found,) = rows(folder, [ROW | {"path": "odd\\name.wav"}])
    assert (found.fields["id"], found.file.missing) == ("odd\\name.wav", "")
    for on_disk, listed in (("NFC", "NFD"), ("NFD", "NFC")):
        name = f"Żaneta{on_disk}/é.wav"
        path = folder / unicodedata.normalize(on_disk, name)
        path.parent.mkdir()
        path.write_bytes(b"1")
        (found,) = rows(folder, [ROW | {"path": unicodedata.normalize(listed, name)}])
        assert (found.path.read_bytes(), found.fields["id"]) == (b"1", unicodedata.normalize("NFC", name))


def test_missing_files_name_the_nearest(folder):
    for path, detail in {
        "A.WAV": "there is 'a.wav'",
        "sub/d.wav": "there is 'sub/c.wav'",
        "x/y.wav": "no such file",
    }.items():
        (found,) = rows(folder, [ROW | {"path": path}])
        assert detail in found.file.missing
    (found,) = rows(folder, [ROW | {"path": "x" * 5000}])
    assert found.file.missing == "no such file"


def test_names_that_are_not_utf8(folder):
    with open(os.fsencode(folder) + b"/caf\xe9.wav", "wb") as file:
        file.write(b"1")
    (found,) = rows(folder, [ROW | {"path": "caf\udce9.wav"}])
    assert (found.fields["id"], found.file.missing) == ("caf\\xe9.wav", "")
    assert found.path.read_bytes() == b"1"
    (found,) = rows(folder, [ROW | {"path": "café.wav"}])
    found.file.missing.encode()


def test_paths_that_lead_out_are_refused_unless_allowed(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "deep" / "x.wav").write_bytes(b"1")
    (folder / "link.wav").symlink_to(elsewhere / "deep" / "x.wav")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "within.wav").symlink_to("a.wav")
    (tmp_path / "f2").mkdir()
    (tmp_path / "f2" / "x.wav").write_bytes(b"1")
    out = [str(elsewhere / "deep/x.wav"), "../elsewhere/deep/x.wav", "link.wav", "linked/deep/x.wav",
           "sub/../../elsewhere/deep/x.wav"]  # fmt: skip
    for path in out:
        said = refused(folder, [ROW, ROW | {"path": path}])
        assert "line 2: path" in said and "leads out of the folder" in said
        allowed = re.search(r"speech_folder:(.*)\?outside=(.*)$", said)
        (_, found) = rows(folder, [ROW, ROW | {"path": path}], outside=allowed[2])
        assert found.path.read_bytes() == b"1" and not found.file.missing
        assert "leads out" in refused(folder, [ROW | {"path": path}], outside=str(tmp_path / "f2"))
    said = refused(folder, [ROW | {"path": path} for path in (*out[:1], "/etc/hostname", "../f2/x.wav")])
    assert "(and 2 more)" in said and said.endswith("?outside=/")
    assert "leads out" in refused(folder, [ROW | {"path": "../f2/x.wav"}]), "f2 is not below f"
    assert not rows(folder, [ROW | {"path": "within.wav"}])[0].file.missing
    with pytest.raises(FileNotFoundError, match="outside=/nowhere"):
        rows(folder, [ROW], outside="/nowhere")


def test_what_is_no_file_is_not_opened(folder):
    os.mkfifo(folder / "pipe.wav")
    os.mkfifo(folder / "manifest.jsonl")
    with pytest.raises(ValueError, match="is not a file"):
        manifest.read_manifest(folder)
    (folder / "manifest.jsonl").unlink()
    (folder / "round").symlink_to("round")
    for path in ("pipe.wav", "sub", "round"):
        assert rows(folder, [ROW | {"path": path}])[0].file.stamp == ()


def test_a_folder_that_is_a_link_is_where_it_leads(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    (folder / "manifest.jsonl").write_text(json.dumps(ROW | {"path": str(tmp_path / "link" / "a.wav")}))
    assert manifest.read_manifest(tmp_path / "link")[0].fields["id"] == "a.wav"
    assert files.Folder(tmp_path / "link").path == files.Folder(folder).path
