"""All keys of `conf/` and arguments of the Trainer with extreme values, Hydra's command line, odd texts and paths:
train.py trains or refuses them in a line, and harms nothing outside its folder."""

import inspect
import os
import random
import re
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import TINY, composed, run_script
from lightning.pytorch import Trainer
from omegaconf import OmegaConf

USUAL = [
    *TINY, "data.path=verse.txt", "model.n_layer=1", "model.block_size=8", "trainer.max_steps=2",
    "trainer.val_check_interval=2", "trainer.limit_val_batches=2", "trainer.log_every_n_steps=1",
    "hydra.run.dir=outputs/new",
]  # fmt: skip
VALUES = [
    "null", "true", "false", "0", "-0.0", "-1", "1", "0.5", "1e-320", "-1e308", "nan", "-inf", "''",
    "' '", "abc", "'1'", "[]", "{}", "[null]", "{a:1}", "{a:{b:[]}}", "{_target_:abc}", "{_target_:builtins.int}",
    "???", "'\x01\x1b[31m'", "'\udcff'", "'\u2028'", "'\U0001f600\u202e'", "'%s%n'", "'{}'", "${nothing}",
    "${oc.env:NOTHING}", "${trainer}", "'" + "a" * 5000 + "'", "nowhere/at/all", "/dev/null", "00:00:00:01",
]  # fmt: skip
# These start processes or a compiler, which have tests elsewhere.
LEFT_OUT = {"run_dir", "compile", "trainer.devices", "trainer.num_nodes", "trainer.strategy"}
CLASSES = [
    "os.mkdir", "nowhere.Nothing", "abc", "", "a..b", "1", "torch.nn.Linear", "lightning.pytorch.loggers.CSVLogger",
    "lightning.pytorch.callbacks.EarlyStopping", "lightning.pytorch.callbacks.RichProgressBar",
]  # fmt: skip
NEW = ["abc", "trainer.abc", "model.abc", "callbacks.abc", "optimizer.0", "seed.abc", "_target_", "hydra.abc", "a b"]
# Overrides after the usual ones: first those that must work, then those that may also be refused.
WORKS = [
    "hydra.verbose=true", "experiment=cpu", "trainer.fast_dev_run=true", "seed=1 seed=2", "trainer.logger=false",
    "trainer.logger=true", "trainer.profiler=simple", "trainer.precision=64-true", "trainer.precision=bf16-true",
    "trainer.limit_train_batches=1", "trainer.limit_val_batches=0", "trainer.detect_anomaly=true", "seed=4294967295",
    "trainer.enable_checkpointing=false", "trainer.enable_model_summary=true", "trainer.accumulate_grad_batches=3",
    "trainer.gradient_clip_val=1 trainer.gradient_clip_algorithm=value", "seed=int(1)", "optimizer.betas=[0,0]",
    "optimizer.schedule=linear optimizer.warmup_steps=1", "optimizer=muon", "model.dropout=0", "model.block_size=1",
    "data.split=[0.5,0.5]", "data.batch_size=1", "~callbacks.text_samples", "trainer.max_time=00:01:00:00",
    "hydra.run.dir=outputs/a/b/c", "hydra.run.dir='outputs/%(message)s'", "hydra/job_logging=disabled",
    "trainer.logger._target_=lightning.pytorch.loggers.CSVLogger", "data=pydocs data.path=null", "resume=allow",
]  # fmt: skip
MAY_WORK = [
    "", "seed=1,2", "resume=auto", "resume=nowhere", "resume=verse.txt", "resume=.", "resume=[]", "resume='",
    "hydra.run.dir=", "hydra.run.dir=verse.txt/a", "hydra.run.dir=.", "hydra.run.dir=${nothing}",
    f"hydra.run.dir={'a' * 300}", "hydra.job.chdir=true", "hydra/job_logging=abc", "=", "a=", "~", "+", "data=",
    "data=nowhere", "data=[file,pydocs]", "model=null", "~model", "~data=pydocs", "optimizer=abc", "seed:1", "seed={",
    "seed=a'b", "seed=${oc.create:{_target_:os.mkdir,path:was_here}}", "seed.a=1", "optimizer.betas=[nan,nan]",
    "model.n_head=3", "model.name=bigram", "data.source=abc", "data=shakespeare data.path=null", "run_dir=elsewhere",
    "trainer.default_root_dir=elsewhere", "trainer.strategy=deepspeed", "trainer.accelerator=tpu",
    "trainer.precision=16-true", "trainer.max_time={abc:1}", "trainer.min_steps=5", "trainer.max_epochs=0",
    "trainer.plugins=abc", "callbacks=null", "data=1984", "callbacks.surprise.prompt=1984", "optimizer.lr=1e300",
]  # fmt: skip
SHOWS = ["--help", "--cfg job --resolve", "--cfg job --package trainer", "-m seed=1,2", "-m model.n_layer=1,2"]
OPTIONS = [
    "--cfg abc", "--cfg", "--config-name abc", "--config-dir nowhere", "-x", "-m seed=1,abc", "-m seed=glob(*)",
    "-m seed=", "-m model.n_embd=8,7", "-m resume=auto", "-m trainer.devices=0", "-m -m seed=1,2",
]  # fmt: skip
VERSE = "".join(f"{n} green bottles hanging on the wall, and {n * 7 % 13} fell.\n" for n in range(40))
TEXTS = {
    "spaces.txt": b" \t\n" * 200, "crlf.txt": VERSE.replace("\n", "\r\n").encode(), "long-line.txt": b"green " * 20_000,
    "escapes.txt": b"\x1b[31m\x1b]0;a\x07" * 60, "combining.txt": "e\u0301\u0302".encode() * 150,
    "right-to-left.txt": "שלום \u202eabc\u202c ".encode() * 50, "percent.txt": b"%s %(text)s {} {0} " * 30,
}  # fmt: skip
GOOD_PATHS = [
    *(f"texts/{name}" for name in TEXTS), "good ones", "./good ones//", "good ones/**/*.txt",
    "good ones/up/../deep/er", "good ones/deep/a=b,c.txt", "books/b.TXT", "2024_05", "1.10", "books/[x].txt",
    "books/é\u202e.txt", "[good ones/a.txt,books/b.TXT]", "~/diary.txt", "${oc.env:HOME}/diary.txt",
]  # fmt: skip
PATHS = [
    "books", "books/..", "empty", "**", "books/[", "books/{a,b}.txt", "books/folder.txt", "*", "~", "books/loop.txt",
    "books/dangling.txt", "/dev/null", "1.1", "-", ".", "null", "$HOME/diary.txt", "http://127.0.0.1:9/a.txt", "true",
    "[]", "[1]", "{}", "' '", "''", "books/b.TXT,empty", "${run_dir}", "[books/b.TXT,nowhere]", "$(mkdir was_here)",
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


def cases() -> Iterator[tuple[list[str], bool]]:
    """Arguments of train.py, and whether they must work."""
    lines = [f"+callbacks.mine._target_={name}" for name in CLASSES]
    lines += [f"trainer.logger._target_={name}" for name in CLASSES]
    lines += [f"{plus}{key}={value}" for key in NEW for plus, value in (("+", "1"), ("++", "{a:1}"))]
    for key in keys():
        lines += [f"~{key}", *(f"{key}={value}" for value in random.Random(key).sample(VALUES, 3))]
    for path in GOOD_PATHS + PATHS:
        yield [*USUAL, f"data.path={path}"], path in GOOD_PATHS
    for line in lines:
        yield [*USUAL, line], False
    for line in WORKS + MAY_WORK:
        yield [*USUAL, *line.split(" ")], line in WORKS
    for line in SHOWS + OPTIONS:
        option, *rest = line.split(" ")
        usual = [*USUAL, "hydra.sweep.dir=outputs/sweep"] if option == "-m" else []
        yield [option, *usual, *rest], line in SHOWS


CASES = [
    pytest.param(*case, id=ascii(case[0][-1])[1:-1][:70], marks=[pytest.mark.generated] if n % 30 else [])
    for n, case in enumerate(cases())
]  # every thirtieth by default


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """A home, a cache, and a working folder with texts of many kinds."""
    (tmp_path / "cache").mkdir()
    names = ["good ones/a.txt", "good ones/deep/a=b,c.txt", "good ones/deep/er/é.txt", "books/b.TXT", "books/[x].txt"]
    names += ["good ones/.ipynb_checkpoints/a.txt", "books/é\u202e.txt", "2024_05", "1.10", "verse.txt"]
    names += ["../home/diary.txt"]
    contents = {f"texts/{name}": content for name, content in TEXTS.items()} | dict.fromkeys(names, VERSE.encode())
    contents |= {"books/binary.txt": b"\0", "good ones/empty.txt": b""}
    for name, content in contents.items():
        file = tmp_path / "work" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    for folder in ("empty", "books/folder.txt"):
        (tmp_path / "work" / folder).mkdir()
    for link, target in {"books/dangling.txt": "no", "books/loop.txt": "loop.txt", "good ones/up": "deep"}.items():
        (tmp_path / "work" / link).symlink_to(target)
    return tmp_path


def outside(box: Path) -> dict[str, bytes]:
    """The files beside the working folder and the cache, and the names above."""
    files = [file for file in (box / "home").rglob("*") if file.is_file()]
    above = [str(Path(folder, name)) for folder in ("/", box.parent, box) for name in os.listdir(folder)]
    return dict.fromkeys(above, b"") | {str(file): file.read_bytes() for file in files}


@pytest.mark.parametrize(("arguments", "succeeds"), CASES)
def test_it_trains_or_is_refused_in_a_line(arguments: list[str], succeeds: bool, box: Path) -> None:
    before = outside(box)
    env = {"HOME": f"{box}/home", "XDG_CACHE_HOME": f"{box}/cache", "CHARGPT_DATA_DIR": ""}
    env |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")  # no server is there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # else the project's settings for tests make errors of them
        done = run_script("train.py", *arguments, status=None, cwd=box / "work", env=env)
    about = f"status {done.returncode} of: {shlex.join(arguments)[-1000:]}\n{done.stderr[-3000:]}"
    assert done.returncode in ((0,) if succeeds else (0, 1, 2)), about
    assert "Traceback (most recent call last)" not in done.stderr, about
    if done.returncode:
        assert re.match(r"(train\.py: )?error: ", done.stderr.rstrip("\n").split("\n")[-1]), about
    assert outside(box) == before, about
    assert not list(box.rglob("was_here")), about
