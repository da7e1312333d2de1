"""predict as a process on real recordings, good ones and others; its windows, batches and order in this one."""

import json
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import soxr

from mser_jax import config as config_lib
from mser_jax import evaluate, predict, state, train
from mser_jax.checkpoint import Checkpoints
from mser_jax.corpora import audio_check, ffmpeg
from mser_jax.parallel import mesh as mesh_lib

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    """The workdir of a stage 1 run that has not learned anything yet."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny(**{"data.length_classes": (2.0, 3.0)})
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        program = train.build(config, mesh)
        checkpoints = Checkpoints(workdir / "checkpoints")
        fresh = state.create(program.init, program.abstract)
        checkpoints.save(fresh, {"config": config.to_dict(), **program.stage.metadata()})
        checkpoints.close()
    return workdir


def process(*arguments):
    line = [sys.executable, "-m", "mser_jax.predict", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def recordings(shared):
    rows = map(json.loads, (shared / "speech" / "manifest.jsonl").read_text().splitlines())
    some = [row for row in rows if row["corpus"] in ("nemo", "casia", "emodb")][::250]
    return [soundfile.read(shared / "speech" / row["path"])[0] for row in some][:5]


def test_every_file_is_answered_or_named(checkpoint, recordings, tmp_path):
    def write(name, samples, rate, **options):
        soundfile.write(tmp_path / name, samples, rate, **options)
        return tmp_path / name

    first, second, third, fourth, fifth = recordings
    good = [
        write("plain.wav", first, 16_000),
        write("stereo.wav", np.stack([first, first], 1), 16_000),
        write("music rate.mp3", soxr.resample(second, 16_000, 44_100), 44_100),
        write("broadcast.ogg", soxr.resample(third, 16_000, 48_000), 48_000),
        write("télé.flac", soxr.resample(fourth, 16_000, 8_000), 8_000),
        write("long.wav", np.concatenate([*recordings, *recordings]), 16_000),
    ]
    missing = tmp_path / "missing.wav"
    bad = [write("short.wav", fifth[:800], 16_000), write("silent.wav", np.zeros(16_000), 16_000), missing]
    for name, content in (("empty.wav", b""), ("corrupt.wav", b"RIFF1234" + bytes(range(256)))):
        (tmp_path / name).write_bytes(content)
        bad.append(tmp_path / name)
    (tmp_path / "error page.wav").write_bytes(b"<html>404</html>")
    os.mkfifo(tmp_path / "pipe.wav")
    write("opposed.wav", np.stack([first, -first], 1), 16_000)
    bad += [
        tmp_path / "error page.wav",
        tmp_path / "pipe.wav",
        tmp_path / "opposed.wav",
        "",
        "s3x://b/a.wav",
        "/dev/zero",
    ]
    mixed = [good[0], bad[0], good[1], *bad[1:], *good[2:]]
    done = process(f"--checkpoint={checkpoint}", "--labels=Wut, joy,neutral,bored", "--language=de,en", *mixed)
    assert done.returncode == 1, done.stderr[-3000:]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["file"] for answer in answers] == [str(path) for path in good]
    for answer in answers:
        p = answer["probabilities"]
        assert list(p) == ["Wut", "joy", "neutral", "bored"]
        assert sum(p.values()) == pytest.approx(1, abs=1e-5) and max(p, key=p.get) == answer["label"]
        assert (answer["stage"], answer["checkpoint"]) == ("alignment", str(checkpoint))
    assert answers[0]["probabilities"] == pytest.approx(answers[1]["probabilities"], abs=1e-3), "stereo of two equals"
    lengths = [len(x) / 16_000 for x in (first, first, second, third, fourth)]
    assert [answer["seconds"] for answer in answers[:5]] == pytest.approx(lengths, abs=0.06)  # mp3 pads
    assert answers[5]["windows"] == np.ceil(sum(map(len, recordings)) * 2 / 48_000)
    reasons = ["too_short", "silent", "missing", "empty", "unreadable", "unreadable: text", "unreadable: a named pipe"]
    reasons += ["opposed_channels", "missing", "missing", "unreadable: a device"]
    for path, why in zip(bad, reasons, strict=True):
        assert f"error: {path}: {why}" in done.stderr
    assert "6 files answered, 11 without an answer" in done.stderr and "s of audio a second" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_cannot_be_asked_is_one_line(checkpoint, capsys):
    for arguments, said in (
        ((f"--checkpoint={checkpoint}x", "a.wav"), f"Did you mean {checkpoint}?"),
        ((f"--checkpoint={checkpoint}", "--language=tlh", "a.wav"), "--language=tlh: no prompts in tlh; there are en"),
        ((f"--checkpoint={checkpoint}", "--labels=sad", "a.wav"), "at least two"),
        ((f"--checkpoint={checkpoint}", "--labels=sad,sad", "a.wav"), "each once"),
        (
            (f"--checkpoint={checkpoint}", f"--labels=sad,{'very ' * 10}angry", "a.wav"),
            "labels: 'very very very very very very very very very very angry' is cut: 'Emotion",
        ),
        ((f"--checkpoint={checkpoint}", "--step=7", "a.wav"), "No checkpoint of step 7"),
    ):
        assert predict.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and said in error, error


def test_a_scorer_puts_labels_where_their_prompts_are(checkpoint, recordings):
    """Against the encoders themselves; spellings of one emotion score alike, other words by themselves."""
    found = evaluate.open_checkpoint(str(checkpoint), -1, predict._for_files)
    samples = (recordings[0][:32_000] * 32767).astype(np.int16)
    with jax.set_mesh(found.mesh):
        stage = found.stage
        rows = found.mesh.devices.size
        batch = {"waveform": np.zeros((rows, 32_000), np.int16), "num_samples": np.full(rows, len(samples), np.int32)}
        batch["waveform"][:, : len(samples)] = samples
        placed = predict.device.to_device(batch, found.mesh)
        ours = [
            np.asarray(stage.scorer(labels, languages=("de",), mesh=found.mesh)(found.params, placed))[0]
            for labels in (("angry", "furious"), ("Wut", "furious"), ("furious", "rage"))
        ]
        model = state.define(stage.build).merge(found.params)
        speech = np.asarray(model.encode_speech(placed["waveform"], placed["num_samples"]).embedding)[0]
        anchors = []
        for word in ("angry", "furious"):
            texts = predict.prompts.label_prompts(word, ("en",))  # the only language that both are put in
            tokens, mask = stage._tokenizer.encode(texts, 64)
            text = np.asarray(model.encode_text(*(jax.device_put(x) for x in (tokens, mask))), np.float64).mean(0)
            anchors.append(text / np.linalg.norm(text))
        logits = float(model.logit_scale()) * np.array(anchors) @ speech
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(ours[0], expected, atol=1e-4)
    np.testing.assert_allclose(ours[1], ours[0], atol=1e-6)
    assert np.abs(ours[2] - ours[0]).max() > 1e-4


def test_the_python_entry_answers_growing_batches_of_any_samples(checkpoint):
    """Three waveforms, then ten, then two, some of them long: each as asked alone; and in every type of samples."""
    labels = ("angry", "happy", "sad", "bored")
    score = predict.waveform_scorer(str(checkpoint), -1, labels)
    rng = np.random.default_rng(0)
    tones = [np.sin(np.arange(30_000) * step * (1 + np.arange(30_000) / 40_000)) for step in (0.03, 0.07, 0.15, 0.4, 1)]
    whole = [(9_000 * tone + rng.normal(0, 300, tone.shape)).astype(np.int16) for tone in tones]
    long = np.concatenate(whole * 2)
    waveforms = [whole[n % 5][: 14_000 + 900 * n] for n in range(12)] + [long, whole[0], long[20_000:]]
    alone = np.concatenate([score([waveform]) for waveform in waveforms])
    np.testing.assert_allclose(alone.sum(-1), 1, atol=1e-5)
    assert np.abs(alone - alone[:1]).max() > 1e-4, "they differ"
    growing = predict.waveform_scorer(str(checkpoint), -1, labels)
    for first, last in ((0, 3), (3, 13), (13, 15), (0, 0)):
        found = growing(waveforms[first:last])
        assert found.shape == (last - first, 4)
        np.testing.assert_allclose(found, alone[first:last], atol=2e-4)
    twice = soxr.resample(whole[1] / 32768, 16_000, 32_000)
    for samples, rate in (
        (whole[1] / 32768, 16_000),
        (whole[1].astype(np.int32) << 16, 16_000),
        (np.stack([whole[1]] * 2, 1) / np.float32(32768), 16_000),
        (twice, 32_000),
    ):
        np.testing.assert_allclose(growing([samples], rate), growing([whole[1]]), atol=2e-3)
    for bad, why in (
        (whole[1].astype(float), "waveform 1: floats have full scale 1"),
        (np.zeros(0), "waveform 1: no samples"),
        (np.zeros(9_000, np.int16), "silent: waveform 1"),
        (whole[1][:900], "too_short: waveform 1"),
        (whole[1] * np.nan, "not_finite: waveform 1"),
    ):
        with pytest.raises(audio_check.BadAudio, match=why):
            growing([whole[0], bad])
    np.testing.assert_allclose(growing(whole[:1]), alone[13:14], atol=2e-4)  # nothing is left over from those


def test_windows_cover_a_recording_evenly():
    samples = np.arange(100, dtype=np.int16)
    assert [part.tolist() for part in predict.windows(samples, 100)] == [samples.tolist()]
    parts = predict.windows(samples, 30)
    assert [len(part) for part in parts] == [30] * 4
    assert set(np.concatenate(parts)) == set(range(100)) and parts[0][0] == 0 and parts[-1][-1] == 99
    assert np.ptp(np.diff([part[0] for part in parts])) <= 1
    assert len(predict.windows(samples[:31], 30)) == 2


def test_batches_have_one_shape_a_class_and_answers_keep_their_order(tmp_path):
    """The scorer tells of each window its level: the answer of a file is the mean over its windows."""
    shapes = []

    def level(params, batch):
        shapes.append(batch["waveform"].shape)
        sums = np.abs(np.asarray(batch["waveform"], np.float64)).sum(-1) / np.asarray(batch["num_samples"])
        return np.stack([sums, 32767 - sums], -1) / 32767

    config = config_lib.from_dict({"data": {"length_classes": (0.5, 1.0)}})
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    fake = types.SimpleNamespace(config=config, mesh=mesh, params={})
    rng = np.random.default_rng(0)
    files, wanted = [], []
    for number in range(40):
        seconds, loud = rng.choice([0.3, 0.9, 2.2]), rng.uniform(0.1, 0.9)
        files.append(str(tmp_path / f"{number}.wav"))
        wanted.append(loud)
        square = loud * (-1.0) ** np.arange(int(seconds * 16_000))
        soundfile.write(files[-1], square, 16_000, subtype="PCM_16")
    with jax.set_mesh(mesh):
        found = list(predict.answers(predict.Predictor(fake, level), files))
    assert [recording.file for recording in found] == files
    np.testing.assert_allclose([recording.answer[0] for recording in found], wanted, atol=1e-3)
    assert set(shapes) == {(16, 8_000), (16, 16_000)}


@pytest.mark.parametrize("broken", ["recording", "checkpoint"])
def test_nan_is_no_answer(tmp_path, monkeypatch, capsys, broken):
    """A file whose probabilities are NaN has none; where the parameters are NaN, nothing can be asked."""

    def scorer(params, batch):
        loud = np.abs(np.asarray(batch["waveform"], np.float64)).max(-1, keepdims=True) > 20_000
        return np.where(loud | (broken == "checkpoint"), np.nan, [[0.75, 0.25]])

    config = config_lib.from_dict({"data": {"length_classes": (0.5,)}, "stage": "alignment"})
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    params = {"kernel": jnp.array([1.0, np.nan if broken == "checkpoint" else 2.0])}
    stage = types.SimpleNamespace(scorer=lambda labels, languages, mesh: scorer)
    fake = evaluate.Checkpoint(config, stage, params, mesh, 7, tmp_path / "run")
    monkeypatch.setattr(evaluate, "open_checkpoint", lambda *_: fake)
    files = [str(tmp_path / name) for name in ("a.wav", "b.wav", "c.wav")]
    for file, level in zip(files, (0.3, 0.9, 0.3), strict=True):
        soundfile.write(file, level * (-1.0) ** np.arange(8_000), 16_000, subtype="PCM_16")
    code = predict.main(["--checkpoint=run", "--labels=x,y", *files])
    out, err = capsys.readouterr()
    if broken == "checkpoint":
        assert code == 2 and not out
        assert re.search(r"^error: .*run, step 7: 1 of 1 parameters .* NaN or infinity, such as kernel", err, re.M)
        with pytest.raises(FloatingPointError, match=r"1 of 1 waveforms' probabilities are not finite.*parameters"):
            predict.waveform_scorer("run", -1, ("x", "y"))([np.arange(8000, dtype=np.int16)])
    else:
        assert code == 1 and [json.loads(line)["file"] for line in out.splitlines()] == [files[0], files[2]]
        assert f"error: {files[1]}: its probabilities are not finite (NaN)\n" in err


def test_a_video_where_there_is_no_ffmpeg_is_named_and_the_others_answered(tmp_path, monkeypatch):
    monkeypatch.setattr(ffmpeg.shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    (tmp_path / "a.webm").write_bytes(b"\x1a\x45\xdf\xa3" + bytes(100))
    soundfile.write(tmp_path / "b.wav", np.tile([0.5, -0.5], 4_000), 16_000)
    config = config_lib.from_dict({"data": {"length_classes": (0.5, 1.0)}})
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    fake = types.SimpleNamespace(config=config, mesh=mesh, params={})
    predictor = predict.Predictor(fake, lambda params, batch: np.full((len(batch["waveform"]), 2), 0.5))
    with jax.set_mesh(mesh):
        video, answered = predict.answers(predictor, [str(tmp_path / "a.webm"), str(tmp_path / "b.wav")])
    assert video[0].endswith("a.webm") and "pip install imageio-ffmpeg" in video[1]
    assert answered.answer.tolist() == [0.5, 0.5]
