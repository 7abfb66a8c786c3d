"""Tables and the picture of a sweep; the command that makes them."""

import csv
import os
import shlex
from pathlib import Path

import pytest

from chargpt.history import Point, add_losses
from chargpt.sweep import compare
from chargpt.sweep.compare import draw, report
from chargpt.sweep.records import Job, Plan, read_sweep


def job(sweep, number, losses=(), finished=True, error=None, **values):
    folder = sweep / f"{number}_job"
    folder.mkdir(parents=True)
    Job(folder, number, {key.replace("__", "."): value for key, value in values.items()}, finished, error).write()
    for n, loss in enumerate(losses, start=1):
        add_losses(folder, Point(100 * n, 10.0 * n, loss + 0.1, loss, 1000.0 * n))
    return folder


@pytest.fixture
def sweep(tmp_path):
    """Two learning rates and three seeds: one failed, one was cut off, one has not begun."""
    folder = tmp_path / "sweep"
    job(folder, 0, [2.5, 2.25], optimizer__lr=0.001, seed=1)
    job(folder, 1, [2.5, 2.35], optimizer__lr=0.001, seed=2)
    job(folder, 2, [2.5], finished=False, optimizer__lr=0.001, seed=3)
    job(folder, 3, [2.0, 2.125], optimizer__lr=0.01, seed=1)
    job(folder, 4, [], finished=False, error="out of memory", optimizer__lr=0.01, seed=2)
    Plan(["optimizer.lr", "seed"], 6, 0, ["--config-dir", "a b", "x=1,2"]).write(folder)
    return folder


def test_the_report(sweep):
    lines = [line.split() for line in report(read_sweep(sweep)).splitlines()]
    assert lines[0][1:] == ["3", "of", "6", "jobs", "finished"]
    head = lines.index(["lr", "seed", "best", "at", "step", "last", "chars/s", "time", "folder"])
    assert lines[head + 1 : head + 6] == [
        ["0.01", "1", "2.0000", "100", "2.1250", "1,500", "20", "s", "3_job"],
        ["0.001", "1", "2.2500", "200", "2.2500", "1,500", "20", "s", "0_job"],
        ["0.001", "2", "2.3500", "200", "2.3500", "1,500", "20", "s", "1_job"],
        ["0.001", "3", "2.5000", "100", "2.5000", "1,000", "10", "s", "2_job", "(not", "finished)"],
        ["0.01", "2", "4_job", "(failed:", "out", "of", "memory)"],
    ]
    over = lines.index(["Over", "seeds:"])
    assert lines[over + 2] == ["0.01", "2.0000", "2.0000", "to", "2.0000", "1"]
    assert lines[over + 3] == ["0.001", "2.3000", "0.0707", "2.2500", "to", "2.3500", "2"]
    words = shlex.quote(f"hydra.sweep.dir={sweep}")
    assert report(read_sweep(sweep)).splitlines()[-3:] == [
        f"Sample the best: python sample.py --ckpt {sweep}/3_job",
        "",
        f"To resume: python train.py -m --config-dir 'a b' resume=allow {words} x=1,2",
    ]


def test_commands_work_from_here(sweep, monkeypatch):
    monkeypatch.chdir(sweep.parent)
    os.renames("sweep", "my sweep")
    assert "python sample.py --ckpt 'my sweep/3_job'\n" in report(read_sweep(Path("my sweep")))


def test_a_speed_that_was_not_measured_is_left_out(tmp_path):
    add_losses(job(tmp_path, 0, seed=1), Point(1, 1.0, 2.0, 2.0, float("nan")))
    assert "nan" not in report(read_sweep(tmp_path))


def test_the_files(sweep, capsys):
    for name in ("table.csv", "sweep.png"):  # nothing is written through a link
        (sweep.parent / name).write_text("mine", encoding="utf-8")
        (sweep / name).symlink_to(sweep.parent / name)
    assert compare.main([str(sweep)]) == 0
    assert capsys.readouterr().out == report(read_sweep(sweep)) + "\n"
    rows = list(csv.DictReader((sweep / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["state"] for row in rows] == ["finished"] * 3 + ["not finished", "failed: out of memory"]
    first = {"best_val_loss": "2.0", "best_step": "100", "last_val_loss": "2.125", "chars_per_second": "1500.0"}
    assert rows[0] == {
        "optimizer.lr": "0.01",
        "seed": "1",
        **first,
        "seconds": "20.0",
        "state": "finished",
        "folder": "3_job",
    }
    assert (sweep / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in sweep.iterdir() if file.is_file()) == ["sweep.json", "sweep.png", "table.csv"]
    assert (sweep.parent / "table.csv").read_text() == (sweep.parent / "sweep.png").read_text() == "mine"


def test_what_the_picture_shows(sweep):
    figure = draw(read_sweep(sweep))
    rates, curves = figure.axes
    assert rates.get_xscale() == "log"
    assert sorted(rates.lines[0].get_xdata()) == [0.001] * 3 + [0.01]
    assert list(rates.lines[1].get_xdata()) == [0.001, 0.01]
    assert list(rates.lines[1].get_ydata()) == [2.35, 2.0]
    assert [list(line.get_ydata()) for line in curves.lines] == [[2.0, 2.125], [2.5, 2.25], [2.5, 2.35], [2.5]]
    assert figure.legends[0].texts[0].get_text() == "lr=0.01, seed=1"


def test_words_and_seeds_alone(tmp_path):
    for n, name in enumerate(("gpt", "$bi^gram", None, True, 10**400)):
        job(tmp_path, n, [3.0 - n / 2], model=name, seed=n)
    words, curves = draw(read_sweep(tmp_path)).axes
    labels = [label.get_text() for label in words.get_xticklabels()]
    assert labels == [r"\$bi^gram", "1" + "0" * 59 + "…", "null", "true", "gpt"]
    assert len(curves.lines) == 5
    job(tmp_path / "seeds", 0, [3.0], seed=1)
    job(tmp_path / "seeds", 1, [2.0], seed=2)
    assert "2.5000     0.7071  2.0000 to 3.0000  2" in report(read_sweep(tmp_path / "seeds"))
    assert draw(read_sweep(tmp_path / "seeds")).axes[0].get_title() == "seed"


def test_control_characters_are_escaped(tmp_path, capsys):
    job(tmp_path, 0, [1e300], error="\x1b[2J", **{"a": "\x1b]52;c;aGk=\x07", "\x1b[2J": 1})
    assert compare.main([str(tmp_path)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_the_newest_is_the_default(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert compare.main([]) == 2
    assert "no sweep in outputs/" in capsys.readouterr().err
    os.renames(sweep, "outputs/sweeps/old")
    os.utime("outputs/sweeps/old/sweep.json", (1, 1))
    job(Path("outputs/sweeps/new"), 0, [1.0], seed=1)
    Plan(["seed"], 3, 0, []).write(Path("outputs/sweeps/new"))
    assert compare.main([]) == 0
    assert capsys.readouterr().out.startswith("outputs/sweeps/new: 1 of 3 jobs finished")
