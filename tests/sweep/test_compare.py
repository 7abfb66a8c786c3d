"""What a sweep's folder says, also one from a stranger."""

import csv
import json
import os
import shlex
import time
from pathlib import Path

import pytest

from chargpt.errors import UserError
from chargpt.history import Point, add_losses
from chargpt.sweep import compare
from chargpt.sweep.compare import draw, report
from chargpt.sweep.records import read_sweep, short_names, shown


def job(sweep, number, losses=(), finished=True, error=None, **values):
    folder = sweep / f"{number}_job"
    folder.mkdir(parents=True)
    values = {key.replace("__", "."): value for key, value in values.items()}
    about = {"number": number, "values": values, "finished": finished, "error": error}
    (folder / "job.json").write_text(json.dumps(about), encoding="utf-8")
    for n, loss in enumerate(losses, start=1):
        add_losses(folder, Point(100 * n, 10.0 * n, loss + 0.1, loss, 1000.0 * n))
    return folder


@pytest.fixture
def sweep(tmp_path):
    """Two learning rates and three seeds, one of which failed and one was cut off."""
    folder = tmp_path / "sweep"
    job(folder, 0, [2.5, 2.25], optimizer__lr=0.001, seed=1)
    job(folder, 1, [2.5, 2.35], optimizer__lr=0.001, seed=2)
    job(folder, 2, [2.5], finished=False, optimizer__lr=0.001, seed=3)
    job(folder, 3, [2.0, 2.125], optimizer__lr=0.01, seed=1)
    job(folder, 4, [], finished=False, error="out of memory", optimizer__lr=0.01, seed=2)
    record = {"swept": ["optimizer.lr", "seed"], "jobs": 6, "arguments": ["a b=1,2"]}
    (folder / "sweep.json").write_text(json.dumps(record), encoding="utf-8")
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
    assert report(read_sweep(sweep)).splitlines()[-3:] == [
        f"Sample the best: python sample.py --ckpt {sweep}/3_job",
        "",
        f"To resume: python train.py -m resume=allow {shlex.quote(f'hydra.sweep.dir={sweep}')} 'a b=1,2'",
    ]


def test_the_command_that_samples_the_best_works_from_here(sweep, monkeypatch):
    monkeypatch.chdir(sweep.parent)
    assert "python sample.py --ckpt sweep/3_job\n" in report(read_sweep(Path("sweep")))


def test_the_files(sweep, capsys):
    assert compare.main([str(sweep)]) == 0
    assert capsys.readouterr().out == report(read_sweep(sweep)) + "\n"
    rows = list(csv.DictReader((sweep / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 5
    assert rows[0]["optimizer.lr"] == "0.01"
    assert (rows[0]["best_val_loss"], rows[0]["best_step"], rows[0]["state"]) == ("2.0", "100", "finished")
    assert rows[4]["state"] == "failed: out of memory"
    assert (sweep / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in sweep.iterdir() if file.is_file()) == ["sweep.json", "sweep.png", "table.csv"]


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
    for n, name in enumerate(("gpt", "$bi^gram", None, True)):
        job(tmp_path, n, [3.0 - n], model=name, seed=n)
    words, curves = draw(read_sweep(tmp_path)).axes
    assert [label.get_text() for label in words.get_xticklabels()] == [r"\$bi^gram", "null", "true", "gpt"]
    assert len(curves.lines) == 4
    job(tmp_path / "seeds", 0, [3.0], seed=1)
    job(tmp_path / "seeds", 1, [2.0], seed=2)
    assert "2.5000     0.7071  2.0000 to 3.0000  2" in report(read_sweep(tmp_path / "seeds"))
    assert draw(read_sweep(tmp_path / "seeds")).axes[0].get_title() == "seed"


def test_nothing_yet(tmp_path):
    (tmp_path / "sweep.json").write_text('{"jobs": 3}', encoding="utf-8")
    assert report(read_sweep(tmp_path)) == f"{tmp_path}: 0 of 3 jobs finished"
    assert compare.main([str(tmp_path)]) == 0


def test_names_and_values():
    assert short_names(["model.n_layer", "seed"]) == {"model.n_layer": "n_layer", "seed": "seed"}
    assert short_names(["model.block_size", "data.block_size"])["data.block_size"] == "data.block_size"
    assert [shown(value) for value in (True, None, 3, 0.00030000001, "a", 1e-10)] == [
        "true", "null", "3", "0.0003", "a", "1e-10",
    ]  # fmt: skip


def test_the_newest_is_the_default(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert compare.main([]) == 2
    assert "no sweep in outputs/" in capsys.readouterr().err
    os.renames(sweep, tmp_path / "outputs" / "sweeps" / "old")
    job(tmp_path / "outputs" / "sweeps" / "new", 0, [1.0], seed=1)
    (tmp_path / "outputs" / "sweeps" / "new" / "sweep.json").write_text("{}", encoding="utf-8")
    os.utime(tmp_path / "outputs" / "sweeps" / "old" / "sweep.json", (1, 1))
    assert compare.main([]) == 0
    assert capsys.readouterr().out.startswith("outputs/sweeps/new: 1 of 1 jobs finished")


HOSTILE = {
    "text": b"[" * 100_000,
    "list": b"[]",
    "null": b"null",
    "binary": b"\xff\xfe",
    "huge": b" " * (1 << 21) + b"{}",
    "values": b'{"number": 1, "values": [], "finished": true, "error": null}',
    "number": b'{"number": "x", "values": {}, "finished": true, "error": null}',
    "error": b'{"number": 1, "values": {}, "finished": true, "error": {}}',
    "digits": b'{"number": 1' + b"0" * 5000 + b', "values": {}, "finished": true, "error": null}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_say_nothing_sensible_are_left_out(name, sweep):
    (sweep / "5_odd").mkdir()
    (sweep / "5_odd" / "job.json").write_bytes(HOSTILE[name])
    assert len(read_sweep(sweep).jobs) == 5
    (sweep / "sweep.json").write_bytes(HOSTILE[name])
    assert len(read_sweep(sweep).jobs) == 5
    report(read_sweep(sweep))


def test_values_that_are_odd(sweep, capsys):
    odd = {
        "a": float("nan"),
        "b": 10**400,
        "c": ["x"],
        "d": "\x1b]52;c;aGk=\x07",
        "e": {},
        "f": 1e308,
        "g": 1e15,
        "\x1b[2J": 1,
    }
    job(sweep, 5, [1e300], **odd)
    assert compare.main([str(sweep)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    (found,) = [each for each in read_sweep(sweep).jobs if each.number == 5]
    assert found.values == {"d": odd["d"], "g": 1e15, "\x1b[2J": 1}


def test_files_of_a_stranger_cannot_take_for_ever(tmp_path):
    """Whatever they say; in seconds, and a small part of a second is expected."""
    begun = time.perf_counter()
    job(tmp_path, 0, [1.0], **{f"k{n}": n for n in range(100)})
    job(tmp_path, 1, [2.0], **{f"k{n}": n for n in range(10_000)})
    job(tmp_path, 2, [3.0], k1="x" * 900_000)
    for n in range(3, 1000):
        job(tmp_path, n, [4.0], k1="y" * 900)
    sweep = read_sweep(tmp_path)
    assert [len(found.values) for found in sweep.jobs[:2]] == [100, 0]  # the second is left out, the third's value is
    assert len(report(sweep)) < 1_000_000
    assert len(draw(sweep).axes) == compare.MOST_PANELS + 1
    assert time.perf_counter() - begun < 20


def test_nothing_is_written_through_a_link(sweep, tmp_path):
    for name in ("table.csv", "sweep.png"):
        (tmp_path / name).write_text("mine", encoding="utf-8")
        (sweep / name).symlink_to(tmp_path / name)
    assert compare.main([str(sweep)]) == 0
    for name in ("table.csv", "sweep.png"):
        assert (tmp_path / name).read_text(encoding="utf-8") == "mine"
        assert not (sweep / name).is_symlink()


def test_no_sweep(tmp_path, capsys):
    with pytest.raises(UserError, match="is not the folder of a sweep"):
        read_sweep(tmp_path)
    assert compare.main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
