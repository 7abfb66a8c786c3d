"""Configurations: every key of `conf/` and every argument of the Trainer with extreme values; Hydra's command line."""

import inspect
import random
from pathlib import Path

from generated.world import TINY, Case, check, every
from helpers import composed
from lightning.pytorch import Trainer
from omegaconf import OmegaConf

VALUES = [
    "null", "true", "false", "0", "-0.0", "-1", "1", "0.5", "-1" + "0" * 30, "1e-320", "-1e308", "nan", "-inf", "''",
    "' '", "abc", "'1'", "[]", "{}", "[null]", "{a:1}", "{a:{b:[]}}", "{_target_:abc}", "{_target_:builtins.int}",
    "???", "'\x01\x1b[31m'", "'\udcff'", "'\u2028'", "'\U0001f600\u202e'", "'%s%n'", "'{}'", "${nothing}",
    "${oc.env:NOTHING}", "${trainer}", "'" + "a" * 5000 + "'", "nowhere/at/all", "/dev/null", "00:00:00:01",
]  # fmt: skip
MANY = ["1" + "0" * 30, "9223372036854775808", "1e308", "inf", "0x10", "1_000", "1e3", "[1,2,3]", "${seed}"]
LONG = ("max_steps", "max_epochs", "text_samples.length", "accumulate_grad_batches")  # MANY would rightly take hours
# These start processes or a compiler, which have tests elsewhere.
LEFT_OUT = {"run_dir", "compile", "data.num_workers", "trainer.devices", "trainer.num_nodes", "trainer.strategy"}
CLASSES = [
    "os.mkdir", "builtins.print", "nowhere.Nothing", "abc", "", ".", "a..b", "[]", "1", "torch.nn.Linear",
    "lightning.pytorch.callbacks.EarlyStopping", "lightning.pytorch.callbacks.ModelCheckpoint",
    "lightning.pytorch.callbacks.RichProgressBar", "lightning.pytorch.callbacks.DeviceStatsMonitor",
    "lightning.pytorch.callbacks.Callback", "lightning.pytorch.loggers.CSVLogger",
]  # fmt: skip
NEW = ["abc", "trainer.abc", "model.abc", "callbacks.abc", "data.abc.abc", "optimizer.0", "seed.abc", "_target_",
       "model._target_", "callbacks.abc._target_", "hydra.abc", "trainer.callbacks", "'é'", "a b"]  # fmt: skip
# Overrides after the usual ones: first those that must work, then those that may also be refused.
WORKS = [
    "hydra.verbose=true", "experiment=cpu", "trainer.fast_dev_run=true", "trainer.fast_dev_run=3", "seed=1 seed=2",
    "trainer.logger=false", "trainer.logger=true", "trainer.profiler=simple", "trainer.precision=64-true",
    "trainer.precision=bf16-true", "trainer.num_sanity_val_steps=2", "trainer.limit_train_batches=1",
    "trainer.limit_val_batches=0", "trainer.inference_mode=false", "trainer.detect_anomaly=true",
    "trainer.deterministic=warn", "seed=4294967295", "trainer.enable_progress_bar=false",
    "trainer.enable_checkpointing=false", "trainer.enable_model_summary=true", "trainer.accumulate_grad_batches=3",
    "trainer.gradient_clip_val=1 trainer.gradient_clip_algorithm=value", "seed=int(1)", "optimizer.betas=[0,0]",
    "optimizer.schedule=linear optimizer.warmup_steps=1", "optimizer=adamw_small", "optimizer=muon", "model.dropout=0",
    "model.block_size=1", "data.split=[0.5,0.5]", "data.batch_size=1", "~callbacks.text_samples", "trainer.max_steps=1",
    "trainer.max_time=00:01:00:00", "callbacks.text_samples.prompt=green", "hydra.run.dir=outputs/a/b/c",
    "hydra.run.dir='outputs/%(message)s'", "hydra.run.dir=2024_05", "hydra/job_logging=disabled",
    "trainer.logger._target_=lightning.pytorch.loggers.CSVLogger", "data=pydocs data.path=null",
    "+callbacks.rates._target_=lightning.pytorch.callbacks.LearningRateMonitor", "resume=null", "resume=allow",
]  # fmt: skip
MAY_WORK = [
    "", " ", "seed=1,2", "resume=auto", "resume=nowhere", "resume=verse.txt", "resume=.", "resume=[]", "resume='",
    "+resume=auto", "hydra.run.dir=", "hydra.run.dir=verse.txt/a", "hydra.run.dir=.", "hydra.run.dir=/dev/null/a",
    "hydra.run.dir=${nothing}", f"hydra.run.dir={'a' * 300}", "hydra.run.dir=outputs/\udcff", "hydra.job.chdir=true",
    "hydra/job_logging=abc", "hydra.searchpath=[file://nowhere]", "=", "a=", "~", "+", "+model@model=bigram", "data=",
    "data=nowhere", "data=../data/file", "data=[file,pydocs]", "model=null", "~model", "~data=pydocs",
    "experiment=[cpu,cpu]", "optimizer=abc", "\udcff=1", "seed:1", "{", "seed={", "seed='", "seed=a'b", "seed=${seed}",
    "seed=${oc.create:{_target_:os.mkdir,path:was_here}}", "seed.a=1", "optimizer.betas=[nan,nan]", "model.n_head=3",
    "model.name=bigram", "data.source=abc", "data=shakespeare data.path=null data.fallback=null", "run_dir=elsewhere",
    "trainer.default_root_dir=elsewhere", "trainer.strategy=deepspeed", "trainer.accelerator=tpu",
    "trainer.precision=16-true", "trainer.overfit_batches=0.5", "trainer.max_time={abc:1}", "trainer.min_steps=5",
    "trainer.check_val_every_n_epoch=1", "trainer.max_epochs=0", "trainer.plugins=abc", "callbacks=null", "data=1984",
    "callbacks.surprise.prompt=1984", "optimizer.lr=1e300", "data.split=[0.001,0.999]", "data.batch_size=1000000000",
]  # fmt: skip
SHOWS = ["--help", "--version", "--cfg job --resolve", "--cfg hydra", "--info all", "--cfg job --package trainer",
         "-m seed=1,2", "-m seed=choice(1,2) model.n_layer=1,2"]  # fmt: skip
OPTIONS = [
    "--hydra-help", "--cfg abc", "--cfg", "--config-name abc", "--config-path nowhere", "--config-dir nowhere", "-x",
    "--experimental-rerun verse.txt", "--abc", "-m seed=1,abc", "-m seed=glob(*)", "-m seed=range(1,0)", "-m seed=",
    "-m model.n_embd=8,7", "-m resume=auto", "-m trainer.devices=0", "-m hydra.sweep.subdir=. seed=1,2",
    "-m hydra/launcher=abc", "-m hydra/sweeper=abc", "-m -m seed=1,2",
]  # fmt: skip


def keys() -> list[str]:
    """Every key and every group of keys of the composed configuration, and all arguments of the Trainer."""
    found = [f"trainer.{name}" for name in inspect.signature(Trainer.__init__).parameters if name != "self"]

    def walk(node: object, path: str) -> None:
        for name, value in node.items() if isinstance(node, dict) else ():
            found.append(path + name)
            walk(value, f"{path}{name}.")

    walk(OmegaConf.to_container(composed()), "")
    return sorted(set(found) - LEFT_OUT)


def cases() -> list[Case]:
    lines = [f"+callbacks.mine._target_={name}" for name in CLASSES]
    lines += [f"trainer.logger._target_={name}" for name in CLASSES]
    lines += [f"{plus}{key}={value}" for key in NEW for plus, value in (("+", "1"), ("++", "{a:1}"))]
    for key in keys():
        values = VALUES if key.endswith(LONG) else VALUES + MANY
        lines += [f"~{key}", *(f"{key}={value}" for value in random.Random(key).sample(values, 3))]
    found = [Case(line, (*TINY, line)) for line in lines]
    found += [Case(line, (*TINY, *line.split(" ")), succeeds=line in WORKS) for line in WORKS + MAY_WORK]
    for line in SHOWS + OPTIONS:
        option, *rest = line.split(" ")
        usual = [*TINY, "hydra.sweep.dir=outputs/sweep"] if option == "-m" else []
        found.append(Case(line, (option, *usual, *rest), succeeds=line in SHOWS))
    return found


@every(cases())
def test_a_configuration_trains_or_is_refused_in_a_line(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
