"""Every file below conf/ composes, and what it describes can be built; mistakes are one line with a hint."""

import pytest
from helpers import ROOT, composed, start

from chargpt.errors import UserError
from chargpt.model import GPTConfig
from chargpt.module import CharLM
from chargpt.run.build import build_callbacks, build_trainer, settle_precision
from chargpt.run.config import hydra_errors, prepared, read_config

OPTIONS = sorted(f"{file.parent.name}={file.stem}" for file in (ROOT / "conf").glob("*/*.yaml") if file.stem != "base")
EXPERIMENTS = sorted(file.stem for file in (ROOT / "conf" / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("option", ["seed=1", *OPTIONS])
def test_composes_and_builds(option, tmp_path):
    extra = ["data.path=x.txt"] if option == "data=file" else []
    chosen = read_config(composed(option, *extra, f"run_dir={tmp_path}"))
    assert chosen.data.block_size == chosen.model.block_size
    assert chosen.data.seed == chosen.seed
    assert chosen.run_dir == str(tmp_path)
    CharLM(chosen.model, chosen.optimizer, "abc", {"name": "a text", "sha256": ""})
    settle_precision(chosen.trainer, None)
    build_trainer(chosen.trainer, build_callbacks(chosen.callbacks))


def test_defaults_are_the_lectures():
    cfg = composed("run_dir=x")
    model = {"name": "gpt", "block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384, "dropout": 0.2}
    assert model.items() <= dict(cfg.model).items() == vars(GPTConfig()).items()
    assert (cfg.data.batch_size, cfg.optimizer.lr, cfg.trainer.max_steps, cfg.seed) == (64, 3e-4, 5000, 1337)
    assert (cfg.trainer.val_check_interval, cfg.trainer.devices, cfg.trainer.accelerator) == (500, 1, "auto")
    assert composed("experiment=lecture", "run_dir=x") == cfg


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments(name, tiny, tmp_path):
    """Each trains, here for a step of a tiny model."""
    start(tmp_path, f"experiment={name}", *tiny, "optimizer.warmup_steps=2", "trainer.max_steps=1")
    assert (tmp_path / "checkpoints" / "best.ckpt").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.n_layr=3"], "Key 'n_layr' not in 'GPTConfig'; did you mean model.n_layer?"),
        (["callbacks.text_samples.lenght=3"], "did you mean callbacks.text_samples.length?"),
        (["n_layer=3"], "Key 'n_layer' not in 'Settings'; did you mean model.n_layer?"),
        (["optimizer.momentum=2"], "Key 'momentum' not in 'AdamWConfig' (there are betas, "),
        (["optimizer.lr=1e-3,"], "1e-3,: values are set as group.key=value, special characters in quotes: "),
        (["model=gtp"], "Could not find 'model/gtp'; did you mean model=gpt?"),
        (["experiment=conf/experiment/cpu.yaml"], "; did you mean experiment=cpu?"),  # as a shell completes it
        (["experiment=cpu", "model=bigram"], "raised while composing config: Key 'n_layer' not in 'BigramConfig'"),
        (["model.n_layer=two"], "Value 'two' of type 'str' could not be converted to Integer"),
        (["seed=1,2"], "Ambiguous value for argument 'seed=1,2'; -m trains a run for each value"),
        (["data.path=a.txt,b.txt"], "several texts are a list: 'data.path=[a.txt,b.txt]'"),
        (["+colour=red"], "unknown key colour (there are callbacks, "),
    ],
)
def test_mistakes(overrides, message):
    """In one line, with the key that may have been meant."""
    with pytest.raises(UserError) as error, hydra_errors():
        read_config(composed(*overrides, "run_dir=x"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("typed", "quoted"),
    [
        ("data.path=[Ünï.txt,(copy).txt, b[1].txt,1.10]", "data.path=['Ünï.txt','(copy).txt','b[1].txt','1.10']"),
        ("data.path=a.txt,1_0.txt", "data.path='a.txt','1_0.txt'"),
        ("init_from=null,2026_01_31", "init_from=null,'2026_01_31'"),
        ("hydra.run.dir=2026_01_31", "hydra.run.dir='2026_01_31'"),
        ("init_from=choice(a,b)", "init_from=choice(a,b)"),
        ("callbacks.text_samples.prompt=1e3", "callbacks.text_samples.prompt='1e3'"),
        ("trainer.logger.name=2026_01", "trainer.logger.name='2026_01'"),
        ("+callbacks.mc.dirpath=${run_dir}/a,b", "+callbacks.mc.dirpath=${run_dir}/a,b"),
    ],
)
def test_names_are_text(typed, quoted):
    """Also if they look like numbers or like Hydra's own syntax."""
    assert prepared([typed]) == [quoted]


def test_flags_may_stand_anywhere():
    words = ["seed=1", "-m", "optimizer.lr=1,2", "--config-dir", "my", "~callbacks.losses"]
    assert prepared(words) == ["-m", "--config-dir", "my", "seed=1", "optimizer.lr=1,2", "~callbacks.losses"]
    assert prepared(["seed=3", "--cfg", "job"]) == ["--cfg", "job", "seed=3"]


@pytest.mark.parametrize("option", ["--max_steps", "--device=cpu", "-n"])
def test_an_option_of_another_tool(option):
    with pytest.raises(UserError, match=rf"unknown option {option}: values are set as group\.key=value"):
        prepared(["seed=1", option, "100"])


def test_whole_loggers_replace_the_default_one():
    assert prepared(["trainer.logger=[{_target_: a}]"]) == ["~trainer.logger", "trainer.logger=[{_target_: a}]"]
    own = "+trainer.logger={_target_: mine.Logger, uri: x}"
    assert composed(*prepared([own]), "run_dir=x").trainer.logger == {"_target_": "mine.Logger", "uri": "x"}


@pytest.mark.parametrize(
    ("error", "cause", "shown"),
    [
        ("Unable to configure handler 'file'", PermissionError(13, "Denied", "train.log"), PermissionError),
        ("CategoricalDistribution does not support dynamic value space.", None, UserError),  # Optuna's
    ],
)
def test_errors_of_logging_and_of_plugins(error, cause, shown):
    with pytest.raises(shown), hydra_errors():
        raise ValueError(error) from cause
