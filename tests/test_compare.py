"""The records in a sweep's folder, its tables and its picture; the command that makes them."""

import csv
import os
import shlex
from pathlib import Path

import pytest

from chargpt import compare
from chargpt.compare import draw, read_sweep, report
from chargpt.history import Job, Plan, Point, add_losses, short_names, write_record


def job(sweep, number, losses=(), finished=True, error=None, speed=1000.0, **values):
    folder = sweep / f"{number}_job"
    folder.mkdir(parents=True)
    made = Job(number, {key.replace("__", "."): value for key, value in values.items()}, finished, error)
    write_record(folder, made)
    for n, loss in enumerate(losses, start=1):
        add_losses(folder, Point(100 * n, 10.0 * n, loss + 0.1, loss, speed * n))
    return made


@pytest.fixture
def sweep(tmp_path):
    """Two learning rates and three seeds: one failed, one was cut off, one has not begun."""
    folder = tmp_path / "sweep"
    job(folder, 0, [2.5, 2.25], optimizer__lr=0.001, seed=1)
    job(folder, 1, [2.5, 2.35], optimizer__lr=0.001, seed=2)
    job(folder, 2, [2.5], finished=False, optimizer__lr=0.001, seed=3)
    job(folder, 3, [2.0, 2.125], optimizer__lr=0.01, seed=1)
    job(folder, 4, [], finished=False, error="out of memory", optimizer__lr=0.01, seed=2)
    write_record(folder, Plan(["optimizer.lr", "seed"], 6, ["--config-dir", "a b", "x=1,2"]))
    return folder


def test_the_report(sweep):
    lines = [line.split() for line in report(read_sweep(sweep)).splitlines()]
    assert lines[0][1:] == ["3", "of", "6", "jobs", "finished"]
    head = lines.index(["lr", "seed", "best", "at", "step", "last", "chars/s", "time", "folder", "state"])
    assert lines[head + 1 : head + 6] == [
        ["0.01", "1", "2.0000", "100", "2.1250", "1,500", "20", "s", "3_job", "finished"],
        ["0.001", "1", "2.2500", "200", "2.2500", "1,500", "20", "s", "0_job", "finished"],
        ["0.001", "2", "2.3500", "200", "2.3500", "1,500", "20", "s", "1_job", "finished"],
        ["0.001", "3", "2.5000", "100", "2.5000", "1,000", "10", "s", "2_job", "not", "finished"],
        ["0.01", "2", "4_job", "failed:", "out", "of", "memory"],
    ]
    over = lines.index(["Over", "seeds:"])
    assert lines[over + 2] == ["0.01", "2.0000", "2.0000", "to", "2.0000", "1"]
    assert lines[over + 3] == ["0.001", "2.3000", "0.0707", "2.2500", "to", "2.3500", "2"]
    words = shlex.quote(f"hydra.sweep.dir={sweep}")
    assert report(read_sweep(sweep)).splitlines()[-3:] == [
        f"Sample the best: python sample.py --ckpt {sweep}/3_job",
        "",
        f"To resume: python train.py -m resume=allow {words} --config-dir 'a b' x=1,2",
    ]


def test_the_files(sweep, capsys, caplog):
    for name in ("table.csv", "sweep.png"):  # nothing is written through a link
        (sweep.parent / name).write_text("mine", encoding="utf-8")
        (sweep / name).symlink_to(sweep.parent / name)
    assert compare.main([str(sweep)]) == 0
    assert capsys.readouterr().out == report(read_sweep(sweep)) + "\n"
    rows = list(csv.DictReader((sweep / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["state"] for row in rows] == ["finished"] * 3 + ["not finished", "failed: out of memory"]
    measured = ["best_val_loss", "best_step", "last_val_loss", "chars_per_second", "seconds"]
    assert list(rows[0]) == ["optimizer.lr", "seed", *measured, "folder", "state"]
    assert list(rows[0].values()) == ["0.01", "1", "2.0", "100", "2.125", "1500.0", "20.0", "3_job", "finished"]
    assert (sweep / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in sweep.iterdir() if file.is_file()) == ["sweep.json", "sweep.png", "table.csv"]
    assert (sweep.parent / "table.csv").read_text() == (sweep.parent / "sweep.png").read_text() == "mine"
    for name in ("table.csv", "sweep.png"):
        (sweep / name).unlink()
    (sweep / "table.csv").mkdir()  # as where another program has it open
    assert compare.main([str(sweep)]) == 0
    assert "cannot write table.csv" in caplog.text
    assert (sweep / "sweep.png").exists()


def test_the_picture(sweep):
    rates, curves = draw(read_sweep(sweep)).axes
    assert rates.get_xscale() == "log"
    assert [list(each) for each in rates.lines[0].get_data()] == [[0.01, 0.001, 0.001, 0.001], [2.0, 2.25, 2.35, 2.5]]
    assert [list(line.get_ydata()) for line in curves.lines] == [[2.0, 2.125], [2.5, 2.25], [2.5, 2.35], [2.5]]
    assert curves.figure.legends[0].texts[0].get_text() == "lr=0.01, seed=1"


def test_words_seeds_and_control_characters(tmp_path, capsys):
    for n, name in enumerate(("gpt", "$bi^gram", "$\x1b]52;c;aGk=\x07", None, True, 10**400)):
        job(tmp_path, n, [3.0 - n / 2], model=name, seed=n, speed=float("nan"), error="\x1b[2J" * (n == 5))
    words = draw(read_sweep(tmp_path)).axes[0]
    assert [label.get_text() for label in words.get_xticklabels()][1:] == [
        "true", "null", "\\$\x1b]52;c;aGk=\x07", r"\$bi^gram", "gpt",
    ]  # fmt: skip
    assert compare.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "nan" not in printed  # a speed that was not measured
    job(tmp_path / "seeds", 0, [3.0], seed=1)
    job(tmp_path / "seeds", 1, [2.0], seed=2)
    assert "2.5000     0.7071  2.0000 to 3.0000  2" in report(read_sweep(tmp_path / "seeds"))
    assert draw(read_sweep(tmp_path / "seeds")).axes[0].get_xlabel() == "seed"


def test_seeds_of_one_setting_only_are_one_row(tmp_path):
    """Values are compared, not how the table shows them."""
    for n, (value, loss) in enumerate(((f"{'x' * 70}a", 1.0), (f"{'x' * 70}a", 2.0), (f"a{'x' * 70}", 3.0))):
        job(tmp_path, n, [loss], data__path=value, seed=n)
    rows = report(read_sweep(tmp_path)).partition("Over seeds:")[2].splitlines()[2:4]
    assert [row.split()[-1] for row in rows] == ["2", "1"]


def test_the_newest_is_the_default(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert compare.main([]) == 2
    assert "no sweep in outputs/" in capsys.readouterr().err
    os.renames(sweep, "outputs/sweeps/old")
    os.utime("outputs/sweeps/old/sweep.json", (1, 1))
    job(Path("outputs/sweeps/a new"), 0, [1.0], seed=1)
    write_record(Path("outputs/sweeps/a new"), Plan(["seed"], 3, []))
    assert compare.main([]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("outputs/sweeps/a new: 1 of 3 jobs finished")
    assert "python sample.py --ckpt 'outputs/sweeps/a new/0_job'\n" in printed


# Records


def test_records_are_read_as_they_were_written(tmp_path):
    """The best first; jobs without a validation last, by number."""
    values = {"optimizer.lr": 0.1, "seed": 2**70, "optimizer": "muon", "compile": True, "data.val_path": None}
    jobs = [
        job(tmp_path, 3, [3.0, 1.0, 2.0], seed=1),
        job(tmp_path, 4, [1.5], finished=False, **values),
        job(tmp_path, 2, finished=False, error="\x1b[2J ü", seed=2),
        job(tmp_path, 10),
    ]
    plan = Plan(["seed"], 5, ["seed=1,2,3"])
    write_record(tmp_path, plan)
    sweep = read_sweep(tmp_path)
    found = [each.job for each in sweep.results]
    assert (found, sweep.plan, sweep.finished, sweep.size) == (jobs, plan, 2, 5)
    assert sweep.keys == ["seed", *(key for key in values if key != "seed")]
    assert [each.state for each in jobs] == ["finished", "not finished", "failed: \x1b[2J ü", "finished"]


def test_values_that_lightning_takes_differently_are_other_jobs(tmp_path):
    assert len({Job(0, {"a": value}).identity for value in (1, 1.0, True, "1", None)}) == 5
    assert Job(0, {"a": 1, "b": 2}).identity == Job(1, {"b": 2, "a": 1}, error="no").identity


@pytest.mark.parametrize(
    "damage",
    [b"", b'{"number": 1, "val', b"[]", b"\xff\xfe", b'{"number": "x", "values": [], "swept": 1, "jobs": {}}'],
    ids=["empty", "half", "list", "binary", "types"],
)
def test_damaged_files_are_left_out(damage, tmp_path, capsys):
    job(tmp_path, 0, b=1)
    for file in (tmp_path / f"{job(tmp_path, 1).number}_job" / "job.json", tmp_path / "sweep.json"):
        file.write_bytes(damage)
    sweep = read_sweep(tmp_path)
    assert [each.job.values for each in sweep.results] == [{"b": 1}]
    assert (sweep.plan, sweep.size) == (Plan(), 1)
    (tmp_path / "0_job" / "job.json").unlink()
    for folder in (tmp_path, tmp_path / "none"):
        assert compare.main([str(folder)]) == 2
        assert capsys.readouterr().err.startswith(f"error: {folder} is not the folder of a sweep")


def test_short_names():
    assert short_names(["model.n_layer", "seed"]) == {"model.n_layer": "n_layer", "seed": "seed"}
    assert short_names(["model.block_size", "data.block_size"])["data.block_size"] == "data.block_size"
