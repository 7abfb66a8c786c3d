"""The configuration in a run's folder: how it is kept, and how a value of it is said again."""

from pathlib import Path

import pytest
from helpers import resume, start
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from chargpt.errors import UserError
from chargpt.run.stored import LARGEST, as_value, check_choices, choices_of, store_config


def config(**values):
    return OmegaConf.create({"resume": None, "data": {"path": None}} | values)


def test_a_configuration_is_replaced_at_once(tmp_path, monkeypatch):
    """Where writing breaks off, the one before stays."""
    store_config(config(a="道", b="${a}"), tmp_path)
    file = tmp_path / ".hydra" / "config.yaml"
    before = file.read_text(encoding="utf-8")
    assert OmegaConf.to_container(OmegaConf.create(before)) == OmegaConf.to_container(config(a="道", b="${a}"))

    whole = Path.open

    def breaks(file, mode="r", *arguments, **options):
        if mode == "xb":
            with whole(file, mode) as half:
                half.write(b"a: ")
            raise OSError(28, "No space left on device")
        return whole(file, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", breaks)
    with pytest.raises(OSError, match="No space left"):
        store_config(config(a=2), tmp_path)
    monkeypatch.undo()
    assert file.read_text(encoding="utf-8") == before
    assert [each.name for each in file.parent.iterdir()] == [file.name]


def test_where_the_text_was_is_kept(tmp_path):
    """A run that goes on finds its text by the hash, and knows no path."""
    store_config(config(data={"path": "my.txt"}), tmp_path)
    store_config(config(resume="here"), tmp_path)
    assert OmegaConf.load(tmp_path / ".hydra" / "config.yaml").data.path == "my.txt"
    store_config(config(resume="here", data={"path": "other.txt"}), tmp_path)
    assert OmegaConf.load(tmp_path / ".hydra" / "config.yaml").data.path == "other.txt"
    store_config(config(), tmp_path)  # another run, in the folder of one that ended before its first save
    assert OmegaConf.load(tmp_path / ".hydra" / "config.yaml").data.path is None


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, -3, 2.5, 1e-4, float("inf")),
        *("word", "a.b/c", "null", "True", "nan", "", " ", "a b", "1", "1e3", "道", "a,b=[c]{d}", "$HOME", "a\nb"),
        *("it's", "\\", "a\\'b", "'", "\\\\'", "x\\\\", '"'),
        *([], [1, "a b", [None]], {"a": 1, "b": ["'"]}),
    ],
)
def test_values_are_spelled_as_hydra_reads_them(value):
    (override,) = OverridesParser.create().parse_overrides([f"x={as_value(value)}"])
    read = OmegaConf.to_container(OmegaConf.create({"x": override.value()}), resolve=True)["x"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hydra: &a {runtime: {choices: {model: gpt}}}\nx: *a\n", "or has aliases"),
        ("hydra: " + "[" * 100_000, "it is too deep"),
        ("seed: 0x" + "f" * 4000, "it has a number of more than 64 bits"),
        ("optimizer:\n  lr: 1" + "0" * 400, "it has a number of more than 64 bits"),
        ("data:\n  text: -1" + "_000" * 40, "it has a number of more than 64 bits"),
        (f"hydra: {{x: {'a' * LARGEST}}}\n", "it is too long"),
    ],
)
def test_small_files_that_describe_huge_trees(text, message, tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "hydra.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        choices_of(tmp_path)


def test_other_options_than_the_runs_own(tmp_path):
    """Those of all groups count, also of one from which the run chose nothing."""
    chosen = {"data": "file", "model": "gpt", "optimizer": "adamw", "trainer": "default", "callbacks": "default"}
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save({"hydra": {"runtime": {"choices": chosen}}}, tmp_path / ".hydra" / "hydra.yaml")
    check_choices(tmp_path, chosen | {"experiment": None, "hydra/launcher": "joblib"})
    with pytest.raises(UserError, match="the run's own optimizer=adamw, not muon"):
        check_choices(tmp_path, chosen | {"optimizer": "muon"})
    with pytest.raises(UserError, match="the run's own experiment=None, not cpu"):
        check_choices(tmp_path, chosen | {"experiment": "cpu"})


@pytest.mark.parametrize("key", ["callbacks.surprise.length=10", "callbacks.surprise._target_=mine.Surprise"])
def test_what_was_switched_off_stays_so(key, tiny, tmp_path):
    """An option of it would be lost without a word."""
    options = [each for each in tiny if not each.startswith("callbacks.surprise")]
    start(tmp_path, *options, "callbacks.surprise=null")
    with pytest.raises(UserError, match=r"has callbacks\.surprise=null, and what was switched off stays so"):
        resume(tmp_path, key, "trainer.max_steps=8")
