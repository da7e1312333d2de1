"""The table that launch/local.sh ends with."""

import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from mser_jax.evaluation import report
from mser_jax.evaluation.rows import make_rows
from tools import local_table, lolo_table

LABELS = ("angry", "happy", "sad")


def write(folder, scoring, right, languages=("fa", "pl")):
    """results.json of 30 utterances a language, so many of them answered rightly, and 12 in a language of training."""
    counts = {"de": (12, 12), **dict.fromkeys(languages, (30, right))}
    columns = {
        "corpus": ["mini"] * sum(n for n, _ in counts.values()),
        "language": [name for name, (n, _) in counts.items() for _ in range(n)],
        "speaker": [f"s{i % 4}" for n, _ in counts.values() for i in range(n)],
        "emotion": [LABELS[i % 3] for n, _ in counts.values() for i in range(n)],
    }
    answers = [(i + (i >= hits)) % 3 for n, hits in counts.values() for i in range(n)]
    trained_on = {"corpora": ["mini"], "languages": ["de"]}
    rows = make_rows(np.eye(3)[answers], columns, LABELS, trained_on=trained_on, resamples=100)
    both = {"n": 70, "by_voice": 0.6, "by_words": 0.0864}
    results = report.build(
        stage="s", checkpoint="c", step=1, label_space=LABELS, scoring=scoring, trained_on=trained_on, merges={},
        rows=rows, incongruence={"conflicting_words": {"fa": both, "all": both}},
    )  # fmt: skip
    report.write(results, folder)


def test_the_table_has_the_form_of_readme_and_names_the_next_command(tmp_path):
    write(tmp_path / "evaluation" / "stage1", "similarity", 15)
    write(tmp_path / "evaluation" / "stage2", "label_likelihood", 24)
    write(tmp_path / "evaluation" / "stage2" / "generation_exact", "generation:exact", 30)
    (tmp_path / "stage2").mkdir()
    command = [sys.executable, "tools/local_table.py", str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = out.splitlines()
    assert (
        lines[1].split()[-7:-5] == ["fa", "pl"]
        and lines[1].split("  ")[1] == "leave one language out, n = 30 each, 4 voices"
    )
    assert lines[2].startswith("  stage 1, similarity to prompts") and lines[2].split()[5:8] == [".500", ".500", ".500"]
    assert lines[3].split()[4:7] == [".800", ".800", ".800"] and lines[4].split()[6:9] == ["1.000"] * 3
    assert len({len(line) for line in lines[1:5]}) == 1, "columns are aligned"
    assert lines[6].split()[:5] == ["conflicting", "words,", "n", "=", "70"]
    assert [line.split() for line in lines[7:9]] == [["stage", n, ".600", ".086"] for n in "12"]
    assert f"mser_jax.predict --checkpoint={tmp_path}/stage2 " in lines[-1]


def test_results_that_are_damaged_or_cut_off_are_a_line(tmp_path, monkeypatch, capsys):
    for content in ("{", "{}", "[]", "\x00"):
        (tmp_path / "evaluation" / "stage1").mkdir(parents=True, exist_ok=True)
        (tmp_path / "evaluation" / "stage1" / "results.json").write_text(content)
        monkeypatch.setattr(sys, "argv", ["local_table.py", str(tmp_path)])
        with pytest.raises(SystemExit, match=r"^error: .*stage1/results\.json is no results\.json.*$"):
            local_table.main()
    step = tmp_path / "lolo" / "de" / "seed_0" / "evaluations" / "zero_shot" / "step_00000004"
    step.mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["lolo_table.py", str(tmp_path / "lolo")])
    lolo_table.main()
    assert "seed_0: no results yet" in capsys.readouterr().out
    (step / "results.json").write_text("{")
    with pytest.raises(SystemExit, match=r"^error: .*is no results\.json"):
        lolo_table.main()


def test_what_is_not_there_has_no_row_and_nothing_is_one_line(tmp_path, monkeypatch):
    write(tmp_path / "evaluation" / "stage1", "similarity", 15, languages=("fa",))
    assert len(local_table.table(local_table.read(epath.Path(tmp_path))).splitlines()) == 5
    monkeypatch.setattr(sys, "argv", ["local_table.py", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit, match=r"error: no results\.json below .*nothing"):
        local_table.main()
