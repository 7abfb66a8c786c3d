"""What the folders of a sweep's jobs are called; sweeps themselves run in test_train.py and test_faults.py."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from chargpt.run.sweep import folder_name, in_sweep


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


def test_no_sweep_without_hydra():
    assert not in_sweep()
