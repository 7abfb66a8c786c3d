"""Configurations: every key of `conf/`, and every argument of Lightning's Trainer, with extremes; and Hydra's flags."""

import inspect
import itertools

from generated.world import NEW, TINY, Case, chance, every, name_of
from helpers import composed
from lightning.pytorch import Trainer
from omegaconf import OmegaConf

VALUES = [
    "null", "true", "false", "0", "-0.0", "-1", "1", "0.5", "1" + "0" * 30, "-1" + "0" * 30, "9223372036854775808",
    "1e-320", "1e308", "-1e308", "nan", "inf", "-inf", "''", "' '", "abc", "'1'", "[]", "{}", "[null]", "[1,2,3]",
    "{a:1}", "{a:{b:[]}}", "{_target_:abc}", "{_target_:builtins.int}", "???", "'\x01\x1b[31m'", "'\udcff'",
    "'\u2028'", "'\U0001f600\u202e'", "'%s%n'", "'{}'", "0x10", "1_000", "1e3", "${seed}", "${nothing}",
    "${oc.env:NOTHING}", "${trainer}", "'" + "a" * 5000 + "'", "nowhere/at/all", "../..", "/dev/null", "00:00:00:01",
]  # fmt: skip
# A number of processes is not tried in bulk; devices and nodes of a machine that is not there would be waited for.
PROCESSES = ("trainer.devices", "trainer.num_nodes", "data.num_workers")
LONG = ("trainer.max_steps", "trainer.max_epochs", "callbacks.text_samples.length", "trainer.limit_val_batches")


def keys() -> list[str]:
    """Every key, and every group of keys, of the composed configuration, and all arguments of the Trainer."""
    found = []

    def walk(node: object, path: str) -> None:
        if path:
            found.append(path)
        if isinstance(node, dict):
            for name, value in node.items():
                walk(value, f"{path}.{name}" if path else name)

    walk(OmegaConf.to_container(composed()), "")
    arguments = [f"trainer.{name}" for name in inspect.signature(Trainer.__init__).parameters if name != "self"]
    return sorted({*found, *arguments} - {"run_dir"})


KEYS = keys()


def values_of(key: str) -> list[str]:
    many = ("1", "1" + "0" * 30, "9223372036854775808", "0x10", "1_000", "1e3", "1e308", "inf", "[1,2,3]", "${seed}")
    return [value for value in VALUES if key not in PROCESSES or value not in many]


def case(name: str, *overrides: str, **options) -> Case:
    """A run on the small text with a few overrides, in a new folder."""
    long = any(key in override for key in LONG for override in overrides)
    options = {"writes": ("work",), "stop_after": 8.0 if long else None} | options
    return Case(name, [("train.py", *TINY, NEW, *overrides)], **options)


def one_key(each: int = 2) -> list[Case]:
    found = []
    for key in KEYS:
        for value in sorted(chance("one", key).sample(values_of(key), each)):
            found.append(case(name_of(f"{key}={value}"), f"{key}={value}"))
    return found


def deleted() -> list[Case]:
    return [case(f"~{key}", f"~{key}") for key in KEYS if not key.startswith("trainer.") or "logger" in key]


def added() -> list[Case]:
    """Keys that are not there, with one plus or two, beside and below those that are."""
    new = ["abc", "trainer.abc", "model.abc", "callbacks.abc", "data.abc.abc", "optimizer.0", "seed.abc", "_target_"]
    new += ["model._target_", "data._target_", "callbacks.abc._target_", "hydra.abc", "trainer.callbacks", "'é'", "a b"]
    values = ["1", "null", "{a:1}", "abc", "nan"]
    return [
        case(name_of(f"{plus}{key}={value}"), f"{plus}{key}={value}")
        for n, (key, plus) in enumerate(itertools.product(new, ("+", "++")))
        for value in [values[n % len(values)]]
    ]


def pairs(count: int = 60) -> list[Case]:
    found = []
    for n in range(count):
        draw = chance("pair", n)
        chosen = [f"{key}={draw.choice(values_of(key))}" for key in draw.sample(KEYS, 2)]
        found.append(case(name_of(f"pair-{n}-{' '.join(chosen)}"), *chosen))
    return found


TARGETS = [
    "os.mkdir", "builtins.print", "nowhere.Nothing", "abc", "", ".", "a..b",
    "lightning.pytorch.callbacks.EarlyStopping", "lightning.pytorch.callbacks.ModelCheckpoint",
    "lightning.pytorch.callbacks.RichProgressBar", "torch.nn.Linear", "lightning.pytorch.callbacks.DeviceStatsMonitor",
    "lightning.pytorch.callbacks.LearningRateMonitor", "[]", "1", "lightning.pytorch.loggers.CSVLogger",
    "lightning.pytorch.callbacks.Callback", "lightning.pytorch", "mine",
]  # fmt: skip


def classes() -> list[Case]:
    return [
        case(name_of(f"class-{key}-{target}"), f"{key}={target}")
        for key in ("+callbacks.mine._target_", "trainer.logger._target_")
        for target in TARGETS
    ]


# Ways to say it, on Hydra's command line.
LINES = [
    "--help", "--hydra-help", "--version", "--cfg job", "--cfg job --resolve", "--cfg hydra", "--cfg all", "--cfg abc",
    "--cfg", "--resolve", "--cfg job --package trainer", "--cfg job --package abc", "--info", "--info all",
    "--info defaults", "--info defaults-tree", "--info config", "--info plugins", "--info searchpath", "--info abc",
    "--config-name abc", "--config-name ''", "--config-path nowhere", "--config-dir nowhere", "--config-dir .",
    "--config-path /dev/null", "--experimental-rerun nowhere", "--experimental-rerun notes.txt", "-sc install=bash",
    "-sc abc", "-sc query=bash", "--run", "--multirun", "-m seed=1,2", "-m seed=1,abc", "-m seed=range(1,3)",
    "-m seed=choice(1,2)", "-m seed=glob(*)", "-m seed=range(1,0)", "-m seed=interval(0,1)", "seed=1,2", "-m seed=",
    "-m model.n_embd=8,7", "-m optimizer=abc,def", "-m resume=auto", "-m resume=outputs/run", "-m trainer.devices=0",
    "-m hydra.sweep.dir=outputs/new hydra.sweep.subdir=. seed=1,2", "-m hydra.sweep.dir=outputs/run seed=1,2",
    "-m hydra/launcher=abc", "-m hydra/sweeper=abc", "-m hydra.sweeper.max_batch_size=0 seed=1,2", "resume=auto",
    "+resume=auto", "++resume=auto", "~resume", "resume=null", "resume=", "resume", "resume=nowhere",
    "resume=verse.txt", "resume=.", "resume=/", "resume=[]", "resume={}", "resume=1", "resume='", 'resume="',
    "resume=''", "resume=nan", "++resume=outputs/run", "+resume=outputs/run", "resume=outputs/run resume=outputs/run",
    "resume=???", "resume=outputs/run --cfg job", "--cfg job resume=outputs/run", "--info resume=auto",
    "resume=outputs/run --help", "resume=outputs/run ~model", "resume=outputs/run ~trainer.max_steps", "'resume'=auto",
    "resume=outputs/run model=bigram", "resume=outputs/run ++model=gpt", "resume=outputs/run trainer.max_steps=nan",
    "resume=outputs/run data.path=notes.txt", "resume=outputs/run run_dir=elsewhere", "resume=outputs/run seed=1337",
    "resume=outputs/run hydra.run.dir=outputs/other", "resume=outputs/run +model.abc=1", "resume=outputs/run -m",
    "resume=outputs/run ~callbacks", "resume=outputs/run callbacks=null", "resume=outputs/run ~trainer",
    "resume=outputs/run hydra.output_subdir=.hydra", "resume=outputs/run --config-name abc",
    "resume=auto resume=nowhere", "hydra.run.dir=", "hydra.run.dir=outputs/run", "hydra.run.dir=notes.txt",
    "hydra.run.dir=notes.txt/a", "hydra.run.dir=.", "hydra.run.dir=/dev/null/a", "hydra.run.dir=/proc/a",
    "hydra.run.dir=null", "hydra.run.dir=[]", "hydra.run.dir=${nothing}", "hydra.run.dir=${oc.env:NOTHING}",
    f"hydra.run.dir={'a' * 300}", "hydra.run.dir=???", "hydra.run.dir=outputs/\udcff",
    "hydra.run.dir='outputs/a\x01b'", "hydra.run.dir='outputs/%(message)s'", "hydra.job.chdir=true",
    "hydra.output_subdir=null", "hydra.output_subdir=../abc", "hydra.output_subdir=/dev/null", "hydra.verbose=true",
    "hydra.verbose=abc", "hydra.job.name=''", "hydra.job.name=a/b", "hydra/job_logging=disabled",
    "hydra/job_logging=none", "hydra/job_logging=abc", "hydra/hydra_logging=none", "hydra.job_logging=null",
    "hydra.job_logging.root.level=abc", "hydra.job_logging.handlers=null", "hydra.searchpath=[file://nowhere]",
    "hydra.searchpath=[abc]", "hydra.searchpath=1", "hydra.mode=MULTIRUN", "hydra.mode=abc", "hydra.env.abc=1",
    "hydra.job.env_set.ABC=1", "hydra.job.env_copy=[MY_NAME]", "hydra.callbacks.a._target_=abc", "hydra=null",
    "~hydra", "=", "=1", "a=", "~", "+", "++", "@", "model@x=gpt", "+model@other=gpt", "+model@model=bigram", "data=",
    "data=nowhere", "data=../data/file", "data=file.yaml", "data=[file,pydocs]", "model=[]", "model=null", "~model",
    "~data=file", "~data=pydocs", "experiment=nowhere", "experiment=cpu", "experiment=[cpu,cpu]", "+experiment=cpu",
    "optimizer=abc", "callbacks=abc", "trainer=abc", "schema/model=gpt", "+schema/model=bigram", "model/abc=gpt", "--",
    "-x", "--abc", "-m -m", "''", "' '", "\udcff", "\udcff=1", "seed=\udcff", "\u202e=1", "seed=1 seed=2", "seed==1",
    "seed:1", "{", "}", "seed={", "seed=[", "seed=(", "seed='", "seed=\"", "seed=a'b", "seed=$", "seed=${", "seed=${}",
    "seed=${seed}", "seed=${data.seed}", "seed=${oc.create:1}", "seed=${oc.decode:abc}", "seed=${hydra:abc}",
    "seed=${abc:1}", "seed=int(1)", "seed=str(1)", "seed=extend_list(1)", "seed=sort(3,2)", "seed=shuffle(1,2)",
    "seed=abs(-1)", "seed.a=1", "seed[0]=1", "data.path[0]=a", "optimizer.betas[0]=1", "optimizer.betas=[0.9]",
    "optimizer.betas=[nan,nan]", "optimizer.betas=[0,0]", "model.n_head=3", "model.n_embd=9 model.n_head=3",
    "model=bigram", "model=bigram model.name=gpt", "model.name=bigram", "optimizer.name=''", "data.source=pydocs",
    "data.source=shakespeare data.path=null", "data.source=abc", "data=pydocs", "data=shakespeare",
    "data=shakespeare data.fallback=null", "data.fallback=abc", "run_dir=outputs/elsewhere", "run_dir=notes.txt",
    "run_dir=null", "run_dir=''", "run_dir=.", "trainer.default_root_dir=elsewhere", "trainer.fast_dev_run=true",
    "trainer.fast_dev_run=3", "trainer.logger=true", "trainer.logger=false", "trainer.logger=[]",
    "trainer.profiler=simple", "trainer.profiler=advanced", "trainer.profiler=pytorch", "trainer.strategy=ddp",
    "trainer.strategy=fsdp", "trainer.strategy=deepspeed", "trainer.accelerator=gpu", "trainer.accelerator=tpu",
    "trainer.accelerator=mps", "trainer.accelerator=cuda", "trainer.accelerator=hpu", "trainer.precision=16-mixed",
    "trainer.precision=16", "trainer.precision=64-true", "trainer.precision=bf16-true", "trainer.precision=16-true",
    "trainer.precision=64", "trainer.precision=transformer-engine", "trainer.precision=auto",
    "trainer.precision=bf16-mixed", "data.num_workers=1",
    "trainer.gradient_clip_algorithm=value trainer.gradient_clip_val=1", "trainer.num_sanity_val_steps=2",
    "trainer.gradient_clip_algorithm=norm", "trainer.limit_train_batches=1", "trainer.limit_train_batches=0",
    "trainer.limit_val_batches=0", "trainer.overfit_batches=1", "trainer.overfit_batches=0.5",
    "trainer.max_time=00:00:00:00", "trainer.max_time={seconds:0}", "trainer.max_time={abc:1}", "trainer.max_time=1",
    "trainer.barebones=true", "trainer.inference_mode=false", "trainer.detect_anomaly=true",
    "trainer.deterministic=warn", "trainer.deterministic=true", "trainer.benchmark=true",
    "trainer.sync_batchnorm=true", "trainer.reload_dataloaders_every_n_epochs=1", "trainer.enable_progress_bar=false",
    "trainer.enable_checkpointing=false", "trainer.enable_model_summary=true", "trainer.check_val_every_n_epoch=1",
    "trainer.check_val_every_n_epoch=0", "trainer.min_steps=5", "trainer.min_epochs=5", "trainer.max_epochs=1",
    "trainer.max_epochs=0", "trainer.use_distributed_sampler=true", "trainer.plugins=abc", "trainer.plugins=[]",
    "trainer.model_registry=abc", "trainer.accumulate_grad_batches=3", "compile=true", "compile=1", "model.dropout=1",
    "model.dropout=0.999999", "optimizer.lr=1e300", "optimizer.lr=1e-300", "optimizer.weight_decay=1e300",
    "data.split=[0.001,0.999]", "data.split=[0.999999999,1e-9]", "data.batch_size=1000000000", "model.n_embd=1000000",
    "seed=4294967295", "model.block_size=2000", "model.n_head=8 model.n_embd=8", "model.n_head=0",
    "callbacks.text_samples.prompt=''",
]  # fmt: skip


# What must work.
GOOD = {
    "--help", "--version", "--cfg job", "--cfg job --resolve", "--cfg hydra", "--cfg all",
    "--cfg job --package trainer", "--info", "--info all", "--info defaults", "--info defaults-tree",
    "--info config", "--info plugins", "--info searchpath",
    "resume=auto", "resume=null", "resume=outputs/run", "resume=outputs/run seed=1337",
    "hydra.run.dir='outputs/%(message)s'", "hydra.verbose=true", "experiment=cpu",
    "trainer.fast_dev_run=true", "trainer.fast_dev_run=3", "trainer.logger=false",
    "trainer.logger=true", "trainer.profiler=simple", "trainer.precision=64-true", "trainer.precision=bf16-true",
    "trainer.precision=bf16-mixed", "data.num_workers=1", "trainer.num_sanity_val_steps=2",
    "trainer.limit_train_batches=1", "trainer.limit_val_batches=0", "trainer.inference_mode=false",
    "trainer.detect_anomaly=true", "trainer.deterministic=warn", "trainer.deterministic=true",
    "trainer.enable_progress_bar=false", "trainer.enable_checkpointing=false", "trainer.enable_model_summary=true",
    "trainer.accumulate_grad_batches=3", "seed=4294967295", "model.n_head=8 model.n_embd=8",
    "seed=1 seed=2", "seed=int(1)", "optimizer.betas=[0,0]", "trainer.gradient_clip_algorithm=norm",
    "trainer.gradient_clip_algorithm=value trainer.gradient_clip_val=1",
}  # fmt: skip
MORE_GOOD = [
    "optimizer.lr=1e-2", "optimizer.schedule=cosine", "optimizer.schedule=linear optimizer.warmup_steps=1",
    "optimizer.weight_decay=0", "optimizer=adamw_small", "model.dropout=0", "model.n_layer=2", "model.block_size=1",
    "data.split=[0.5,0.5]", "data.batch_size=1", "seed=0", "callbacks.text_samples=null", "~callbacks.text_samples",
    "trainer.max_steps=1", "trainer.val_check_interval=1", "trainer.log_every_n_steps=5",
    "trainer.max_time=00:01:00:00", "callbacks.text_samples.prompt=green", "compile=false", "trainer.devices=1",
    "trainer.logger._target_=lightning.pytorch.loggers.CSVLogger", "hydra.run.dir=outputs/a/b/c",
    "+callbacks.rates._target_=lightning.pytorch.callbacks.LearningRateMonitor",
]  # fmt: skip


def lines() -> list[Case]:
    found = [case(name_of(f"good-{line}"), *line.split(" "), succeeds=True) for line in MORE_GOOD]
    for sweep in ("seed=1,2", "seed=range(1,3)", "seed=choice(1,2) model.n_layer=1,2"):  # argparse wants -m first
        command = ("train.py", "-m", *TINY, "hydra.sweep.dir=outputs/sweep", *sweep.split(" "))
        found.append(Case(name_of(f"sweep-{sweep}"), [command], writes=("work/outputs/sweep",), succeeds=True))
    for line in LINES:
        words = [word if word != "''" else "" for word in line.split(" ")] if line != "' '" else [" "]
        alone = line.startswith(("-", "resume", "+resume", "++resume", "~resume", "hydra.run", "'resume'"))
        start = [each for each in TINY if not each.startswith("data=")] if line.startswith("data=") else list(TINY)
        base = [] if "resume=outputs/run" in line or "resume=auto" in line else [*start] if alone else [*start, NEW]
        seconds = 120.0 if line == "compile=true" else 20.0  # a compiler needs its time
        found.append(
            Case(
                name_of(f"line-{line}"),
                [("train.py", *base, *words)],
                writes=("work",),
                seconds=seconds,
                succeeds=line in GOOD,
            )
        )
    return found


# The second process is no fork of ours: what it imports leaves its own in the home.
TWO_DEVICES = case("two-devices", "trainer.devices=2", seconds=120.0, writes=("work", "home/.config", "home/.cache"))

CASES = [*one_key(), *deleted(), *added(), *pairs(), *classes(), *lines(), TWO_DEVICES]


@every(CASES)
def test_a_configuration_trains_or_is_refused_in_a_line(case, world):
    world.check(case)
