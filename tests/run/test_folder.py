import time

import pytest
from omegaconf import OmegaConf

from chargpt.errors import UserError
from chargpt.run.folder import claim, settle_events, short, store_config


def test_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(short(tmp_path / "outputs" / "run")) == "outputs/run"
    assert short(tmp_path.parent / "run") == tmp_path.parent / "run"


def test_only_one_run_can_claim_a_folder(tmp_path):
    claim(tmp_path / "deep" / "run")
    with pytest.raises(UserError, match=r"run holds a run already; hydra\.run\.dir="):
        claim(tmp_path / "deep" / "run")
    (tmp_path / "other" / ".hydra").mkdir(parents=True)  # as Hydra leaves it
    claim(tmp_path / "other")


def test_a_configuration_is_replaced_at_once(tmp_path, monkeypatch):
    """Where writing breaks off, the one before stays."""
    store_config(OmegaConf.create({"a": "道", "b": "${a}"}), tmp_path)
    file = tmp_path / ".hydra" / "config.yaml"
    assert OmegaConf.to_container(OmegaConf.load(file)) == {"a": "道", "b": "${a}"}

    def breaks(config, file):
        file.write_text("a: ")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(OmegaConf, "save", breaks)
    with pytest.raises(OSError, match="No space left"):
        store_config(OmegaConf.create({"a": 2}), tmp_path)
    assert OmegaConf.to_container(OmegaConf.load(file)) == {"a": "道", "b": "${a}"}


def test_events_of_the_future_are_settled(tmp_path):
    """All come before what is written from now on, in their order; other files keep their names."""
    now = int(time.time())
    for name in (f"events.out.tfevents.{now + 50}.host.b", f"events.out.tfevents.{now - 50}.host.a", "tfevents.txt"):
        (tmp_path / name).write_text(name[-1], encoding="utf-8")
    settle_events(tmp_path)
    names = sorted(file.name for file in tmp_path.glob("events*"))
    seconds = [int(name.split(".")[3]) for name in names]
    assert [(tmp_path / name).read_text(encoding="utf-8") for name in names] == ["a", "b"]
    assert seconds[1] - seconds[0] == 100
    assert seconds[1] < now + 1
    assert (tmp_path / "tfevents.txt").exists()


def test_events_of_the_past_stay(tmp_path):
    (tmp_path / "events.out.tfevents.1700000000.host.1").touch()
    settle_events(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["events.out.tfevents.1700000000.host.1"]
