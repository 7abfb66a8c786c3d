"""Configurations: every key of `conf/` and every argument of the Trainer with extreme values; Hydra's command line."""

import inspect
import itertools
import random

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


def keys() -> list[str]:
    """Every key and every group of keys of the composed configuration, and all arguments of the Trainer."""
    found = [f"trainer.{name}" for name in inspect.signature(Trainer.__init__).parameters if name != "self"]

    def walk(node: object, path: str) -> None:
        for name, value in node.items() if isinstance(node, dict) else ():
            found.append(path + name)
            walk(value, f"{path}{name}.")

    walk(OmegaConf.to_container(composed()), "")
    return sorted(set(found) - LEFT_OUT)


KEYS = keys()


def values_of(key: str) -> list[str]:
    return VALUES if key.endswith(LONG) else VALUES + MANY


def case(kind: str, *overrides: str, succeeds: bool = False) -> Case:
    return Case(f"{kind} {' '.join(overrides)}", (*TINY, *overrides), succeeds=succeeds)


def one_key(each: int = 2) -> list[Case]:
    return [case("one", f"{key}={value}") for key in KEYS for value in random.Random(key).sample(values_of(key), each)]


def deleted() -> list[Case]:
    return [case("deleted", f"~{key}") for key in KEYS if not key.startswith("trainer.") or "logger" in key]


def added() -> list[Case]:
    """New keys beside and below those of `conf/`, with one plus or two."""
    new = ["abc", "trainer.abc", "model.abc", "callbacks.abc", "data.abc.abc", "optimizer.0", "seed.abc", "_target_"]
    new += ["model._target_", "data._target_", "callbacks.abc._target_", "hydra.abc", "trainer.callbacks", "'é'", "a b"]
    values = itertools.cycle(["1", "null", "{a:1}", "abc", "nan"])
    return [case("added", f"{plus}{key}={next(values)}") for key in new for plus in ("+", "++")]


def pairs(count: int = 60) -> list[Case]:
    draws = [random.Random(n) for n in range(count)]
    return [case(f"pair-{n}", *(f"{key}={draw.choice(values_of(key))}" for key in draw.sample(KEYS, 2)))
            for n, draw in enumerate(draws)]  # fmt: skip


def classes() -> list[Case]:
    targets = ["os.mkdir", "builtins.print", "nowhere.Nothing", "abc", "", ".", "a..b", "[]", "1", "torch.nn.Linear"]
    names = ["", ".callbacks.EarlyStopping", ".callbacks.ModelCheckpoint", ".callbacks.RichProgressBar"]
    names += [".callbacks.DeviceStatsMonitor", ".callbacks.LearningRateMonitor", ".callbacks.Callback"]
    targets += [f"lightning.pytorch{name}" for name in (*names, ".loggers.CSVLogger")]
    places = ("+callbacks.mine._target_", "trainer.logger._target_")
    return [case("class", f"{place}={target}") for place in places for target in targets]


# Command lines after the usual overrides: first those that must work, then those that may also be refused.
WORKS = [
    "hydra.verbose=true", "experiment=cpu", "trainer.fast_dev_run=true", "trainer.fast_dev_run=3", "seed=1 seed=2",
    "trainer.logger=false", "trainer.logger=true", "trainer.profiler=simple", "trainer.precision=64-true",
    "trainer.precision=bf16-true", "trainer.precision=bf16-mixed", "trainer.num_sanity_val_steps=2",
    "trainer.limit_train_batches=1", "trainer.limit_val_batches=0", "trainer.inference_mode=false",
    "trainer.detect_anomaly=true", "trainer.deterministic=warn", "trainer.deterministic=true", "seed=4294967295",
    "trainer.enable_progress_bar=false", "trainer.enable_checkpointing=false", "trainer.enable_model_summary=true",
    "trainer.accumulate_grad_batches=3", "model.n_head=8 model.n_embd=8", "seed=int(1)", "optimizer.betas=[0,0]",
    "trainer.gradient_clip_val=1 trainer.gradient_clip_algorithm=value", "trainer.gradient_clip_algorithm=norm",
    "optimizer.lr=1e-2", "optimizer.schedule=cosine", "optimizer.schedule=linear optimizer.warmup_steps=1",
    "optimizer.weight_decay=0", "optimizer=adamw_small", "optimizer=muon", "model.dropout=0", "model.n_layer=2",
    "model.block_size=1", "data.split=[0.5,0.5]", "data.batch_size=1", "seed=0", "callbacks.text_samples=null",
    "~callbacks.text_samples", "trainer.max_steps=1", "trainer.log_every_n_steps=5", "trainer.max_time=00:01:00:00",
    "callbacks.text_samples.prompt=green", "compile=false", "trainer.devices=1", "hydra.run.dir=outputs/a/b/c",
    "hydra.run.dir='outputs/%(message)s'", "hydra.run.dir=2024_05", "hydra/job_logging=disabled",
    "trainer.logger._target_=lightning.pytorch.loggers.CSVLogger", "data=pydocs data.path=null",
    "+callbacks.rates._target_=lightning.pytorch.callbacks.LearningRateMonitor", "resume=null", "resume=allow",
]  # fmt: skip
MAY_WORK = [
    "seed=1,2", "resume=auto", "resume=nowhere", "resume=verse.txt", "resume=.", "resume=[]", "resume=", "resume='",
    "~resume", "+resume=auto", "hydra.run.dir=", "hydra.run.dir=verse.txt", "hydra.run.dir=verse.txt/a",
    "hydra.run.dir=.", "hydra.run.dir=/dev/null/a", "hydra.run.dir=null", "hydra.run.dir=[]",
    "hydra.run.dir=${nothing}", f"hydra.run.dir={'a' * 300}", "hydra.run.dir=???", "hydra.run.dir=outputs/\udcff",
    "hydra.run.dir='outputs/a\x01b'", "hydra.job.chdir=true", "hydra.verbose=abc", "hydra/job_logging=none",
    "hydra/job_logging=abc", "hydra.searchpath=[file://nowhere]", "=", "a=", "~", "+", "+model@model=bigram", "data=",
    "data=nowhere", "data=../data/file", "data=file.yaml", "data=[file,pydocs]", "model=[]", "model=null", "~model",
    "~data=file", "~data=pydocs", "experiment=nowhere", "experiment=[cpu,cpu]", "+experiment=cpu", "optimizer=abc",
    "callbacks=abc", "trainer=abc", "\udcff", "\udcff=1", "seed=\udcff", "seed:1", "{", "}", "seed={", "seed=[",
    "seed='", 'seed="', "seed=a'b", "seed=${seed}", "seed=${data.seed}", "seed=${abc:1}",
    "seed=${oc.create:{_target_:os.mkdir,path:was_here}}", "seed.a=1", "optimizer.betas=[nan,nan]", "model.n_head=3",
    "model=bigram model.name=gpt", "model.name=bigram", "data.source=pydocs", "data.source=abc", "data=shakespeare",
    "data=shakespeare data.path=null data.fallback=null", "data.fallback=abc", "run_dir=verse.txt", "run_dir=elsewhere",
    "trainer.default_root_dir=elsewhere", "trainer.logger=[]", "trainer.strategy=deepspeed", "trainer.accelerator=gpu",
    "trainer.accelerator=tpu", "trainer.precision=16-mixed", "trainer.precision=16-true",
    "trainer.precision=transformer-engine", "trainer.precision=auto", "trainer.overfit_batches=1",
    "trainer.limit_train_batches=0", "trainer.overfit_batches=0.5", "trainer.max_time={seconds:0}",
    "trainer.max_time={abc:1}", "trainer.sync_batchnorm=true", "trainer.min_steps=5",
    "trainer.reload_dataloaders_every_n_epochs=1", "trainer.check_val_every_n_epoch=1", "trainer.max_epochs=0",
    "trainer.use_distributed_sampler=true", "trainer.plugins=abc", "callbacks=null", "data=1984",
    "callbacks.text_samples.prompt=1984", "callbacks.surprise.prompt=1984", "trainer.min_steps=abc", "model.dropout=1",
    "optimizer.lr=1e300", "optimizer.weight_decay=1e300", "data.split=[0.001,0.999]", "data.split=[0.999999999,1e-9]",
    "data.batch_size=1000000000", "model.block_size=2000", "model.n_head=0",
]  # fmt: skip
# Lines that begin with an option of Hydra's.
SHOWS = ["--help", "--version", "--cfg job", "--cfg job --resolve", "--cfg hydra", "--cfg all", "--info all",
         "--cfg job --package trainer", "--info defaults-tree", "--info config", "--info plugins"]  # fmt: skip
SWEEPS = ["-m seed=1,2", "-m seed=range(1,3)", "-m seed=choice(1,2) model.n_layer=1,2"]
OPTIONS = [
    "--hydra-help", "--cfg abc", "--cfg", "--info abc", "--config-name abc", "--config-path nowhere",
    "--config-dir nowhere", "--config-path /dev/null", "--experimental-rerun nowhere", "-x",
    "--experimental-rerun verse.txt", "-sc install=bash", "--abc", "-m seed=1,abc", "-m seed=glob(*)",
    "-m seed=range(1,0)", "-m seed=interval(0,1)", "-m seed=", "-m model.n_embd=8,7", "-m optimizer=abc,def",
    "-m resume=auto", "-m trainer.devices=0", "-m hydra.sweep.subdir=. seed=1,2", "-m hydra/launcher=abc",
    "-m hydra/sweeper=abc", "-m -m seed=1,2",
]  # fmt: skip


def lines() -> list[Case]:
    found = [case("works", *line.split(" "), succeeds=True) for line in WORKS]
    found += [case("line", *line.split(" ")) for line in MAY_WORK] + [case("line", ""), case("line", " ")]
    for line in (*SHOWS, *SWEEPS, *OPTIONS):
        option, *rest = line.split(" ")
        arguments = (option, *TINY, "hydra.sweep.dir=outputs/sweep", *rest) if option == "-m" else (option, *rest)
        found.append(Case(line, arguments, succeeds=line not in OPTIONS))
    return found


CASES = [*one_key(), *deleted(), *added(), *pairs(), *classes(), *lines()]


@every(CASES)
def test_a_configuration_trains_or_is_refused_in_a_line(case: Case, tmp_path):
    check(case, tmp_path)
