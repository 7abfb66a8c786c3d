"""The folders of sweeps and their jobs; sweeps themselves run in tests/test_sweeps.py."""

from pathlib import Path

import pytest
from helpers import run_script
from hypothesis import given
from hypothesis import strategies as st

from chargpt.errors import UserError
from chargpt.sweep.job import in_sweep
from chargpt.sweep.records import Plan
from chargpt.sweep.run import check_folder, folder_name


def test_folder_names():
    assert folder_name("model.n_layer=2,optimizer.lr=0.001") == "model.n_layer=2,optimizer.lr=0.001"
    assert folder_name("data.path=../../etc/passwd") == "data.path=.._.._etc_passwd"
    assert folder_name("data.path=文.txt") == "data.path=文.txt"
    assert folder_name("") == "defaults"
    long = [folder_name("道" * 200 + str(n)) for n in (1, 2)]
    assert long[0] != long[1]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_any_overrides_make_a_folder_below_the_sweeps(overrides):
    """One level, never hidden or above, and short enough for any file system."""
    name = folder_name(overrides)
    assert Path("sweep", name).parent == Path("sweep")
    assert name not in ("", ".", "..")
    assert not name.startswith(".")
    assert len(name.encode()) <= 200


@pytest.mark.parametrize("name", ["sweep.json", "multirun.yaml", "table.csv", "sweep.png"])
def test_what_is_somebody_elses_is_left_alone(name, tmp_path):
    check_folder(tmp_path / "none", goes_on=False)
    check_folder(tmp_path, goes_on=False)
    (tmp_path / name).write_text("mine", encoding="utf-8")
    for goes_on in (False, True):
        with pytest.raises(UserError, match=f"holds a {name} already, and no sweep"):
            check_folder(tmp_path, goes_on=goes_on)


def test_a_sweep_that_came_to_nothing_is_begun_again(tmp_path):
    Plan("a start", 3).write(tmp_path)
    (tmp_path / "multirun.yaml").write_text("", encoding="utf-8")
    check_folder(tmp_path, goes_on=False)


def test_no_sweep_without_hydra():
    assert not in_sweep()


def test_characters_and_bytes_are_not_compared(tiny, tmp_path):
    done = run_script("train.py", "-m", *tiny, "data.tokenizer=characters,bytes", f"hydra.sweep.dir={tmp_path}/s")
    assert done.returncode == 2
    assert "per byte do not compare with those per character" in done.stderr
