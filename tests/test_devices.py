"""One run on several devices: what they compute together, who starts them, and what happens when one of them dies."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    ROOT,
    STEPS,
    assert_same,
    composed,
    curves,
    launch,
    resume,
    run_fresh,
    run_script,
    signal_at,
    start,
    state,
)
from lightning.fabric.plugins.environments import LightningEnvironment

from chargpt.batches import SequentialBlocks
from chargpt.checkpoint import load_checkpoint
from chargpt.curve import read_curve
from chargpt.errors import UserError
from chargpt.model import GPTConfig
from chargpt.module import CharLM
from chargpt.optim import AdamWConfig
from chargpt.run import ranks
from chargpt.run.callbacks import throughput
from chargpt.run.launched import arguments_of_rank, is_first, launched
from chargpt.run.ranks import check_number
from chargpt.run.resume import load_state
from train import train

TESTS = {"PYTHONPATH": str(ROOT / "tests")}  # where the callbacks that do harm are found
TWO = ["trainer.devices=2", "model.dropout=0.2", *STEPS]
EXACT = 1e-6  # of a sum of some dozen float32 numbers in another order; relative


def weights(folder):
    return state(folder)["state_dict"]


def by_torchrun(processes, *arguments, **options):
    """Run train.py as torchrun does, in a folder of one's own; everything that was said, and the status."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | TESTS
    command = [*launcher, str(ROOT / "train.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, **options)


def by_slurm(*arguments, nodes=2):
    """Start train.py as `srun` does on several nodes, one task on each."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "chargpt", "SLURM_NTASKS": str(nodes), "SLURM_NNODES": str(nodes)}
    shared |= {"SLURM_NTASKS_PER_NODE": "1", "SLURM_LOCALID": "0", "SLURM_NODELIST": "127.0.0.1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    runs = []
    for n in range(nodes):
        environment = TESTS | shared | {"SLURM_PROCID": str(n), "SLURM_NODEID": str(n)}
        runs.append(launch(f"trainer.num_nodes={nodes}", "trainer.strategy=ddp", *arguments, env=environment))
    said = [run.communicate(timeout=120)[1] for run in runs]
    return [run.returncode for run in runs], said


def processes_of(folder):
    """The files in /proc, where there is such a folder, of the processes of a run in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = process.read_bytes()
            if f"{folder}".encode() in command and b"train.py" in command:
                found.append(process)
    return found


def assert_nobody_is_left(folder):
    """No process of a run in this folder is there any more, nor soon will be."""
    left = []
    for _ in range(100):
        left = processes_of(folder)
        if not left:
            return
        time.sleep(0.1)
    raise AssertionError(left)


def assert_same_end(a, b):
    """Bitwise, random states of all ranks included."""
    a, b = state(a), state(b)
    for key in ("state_dict", "optimizer_states", "random_states", "global_step"):
        assert_same(a[key], b[key], key)


@pytest.fixture(scope="module")
def quiet(tiny, tmp_path_factory):
    """A run on two devices that nothing befalls."""
    folder = tmp_path_factory.mktemp("quiet")
    done = run_script("train.py", *tiny, *TWO, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


# What they compute


@pytest.mark.parametrize(
    ("devices", "batch", "split"), [(2, 64, [0.8, 0.1, 0.1]), (3, 12, [0.9, 0.1]), (3, 12, [0.99, 0.005, 0.005])]
)
def test_several_devices_do_what_one_does(devices, batch, split, tiny, tmp_path):
    """A batch of 64 on one is 2 x 32 on two, and one of 12 is 3 x 4 on three. Validation and test text are scored once,
    also where their blocks do not divide by the devices, or where one of these has none. One of them speaks."""
    tiny = [*tiny, "model.dropout=0", "trainer.log_every_n_steps=1", "callbacks.averaging.decay=0.3"]
    tiny += [f"data.split={split}"]
    if batch == 64:  # so that the weights that are tested are not the last ones
        tiny += ["+callbacks.harm={_target_: faults.Worsen, step: 4}"]
    options = [f"trainer.devices={devices}", f"data.batch_size={batch // devices}"]
    done = run_script("train.py", *tiny, *options, f"hydra.run.dir={tmp_path}/several", env=TESTS)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Best validation loss") == 1
    assert "Warning" not in done.stderr
    assert "sync_dist" not in done.stderr
    start(tmp_path / "one", *tiny, f"data.batch_size={batch}")
    one, several = curves(tmp_path / "one"), curves(tmp_path / "several")
    assert one.keys() == several.keys()
    tags = ["train/loss", "train/grad_norm", "lr", "val/loss", "val/accuracy", "val/best_loss", "test/loss"]
    for tag in tags[: 6 if len(split) == 2 else 7]:
        assert [step for step, _ in one[tag]] == [step for step, _ in several[tag]], tag
        assert [value for _, value in several[tag]] == pytest.approx([value for _, value in one[tag]], rel=1e-5), tag
    a, b = weights(tmp_path / "one"), weights(tmp_path / "several")
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-4, atol=1e-6, msg=name)
    model, _ = load_checkpoint(tmp_path / "several")
    assert sum(p.numel() for p in model.parameters()) > 0


@pytest.mark.parametrize("world", range(1, 12))
def test_every_character_is_validated_once(world):
    ids = torch.arange(150).numpy()
    shares = [SequentialBlocks(ids, 16, 2, rank, world) for rank in range(world)]
    assert min(map(len, shares)) >= 1
    items = [share[n] for share in shares for n in range(len(share))]
    assert sorted(torch.cat([targets.flatten() for _, targets in items]).tolist()) == list(range(1, 150))
    assert {inputs.shape[1] for inputs, _ in items} == {16, 149 % 16}


@pytest.mark.parametrize("world", [2, 3, 7, 11])
def test_the_validation_loss_is_that_of_one(world):
    """Up to the order of a sum of float32 numbers; in 11 shares some are empty."""
    torch.manual_seed(0)
    module = CharLM(GPTConfig(block_size=16, n_layer=1, n_head=2, n_embd=16), AdamWConfig(), "abcdefg")
    module.eval()
    ids = torch.randint(7, (150,)).numpy()

    def sums(rank, world):
        share = SequentialBlocks(ids, 16, 2, rank, world)
        for n in range(len(share)):
            module.validation_step(share[n], n)
        found = module.mean_loss.mean_value.double(), module.mean_loss.weight.double()
        module.mean_loss.reset()
        return torch.stack(found)

    loss, weight = sums(0, 1)
    shared_loss, shared_weight = sum(sums(rank, world) for rank in range(world))
    assert shared_weight == weight == 149
    assert float(shared_loss) == pytest.approx(float(loss), rel=EXACT)


def test_masks_differ_and_so_do_not_the_weights(quiet, tiny, tmp_path):
    """Each rank writes down what it draws in a step, and how its weights are after it."""
    code = "{_target_: faults.Draw, folder: '" + str(tmp_path) + "'}"
    done = run_script("train.py", *tiny, *TWO, f"+callbacks.draw={code}", f"hydra.run.dir={tmp_path}/run", env=TESTS)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert not torch.equal(first["mask"], second["mask"])
    assert 0 < (first["mask"] == 0).float().mean() < 1
    assert_same(first["weights"], second["weights"])
    a, b = state(quiet)["random_states"]
    assert not torch.equal(a["cpu"], b["cpu"])


def test_characters_of_all_devices_count(monkeypatch):
    seconds = iter([0.0, 4.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(seconds))
    logged = {}
    trainer = SimpleNamespace(global_step=0, world_size=3, accumulate_grad_batches=2, log_every_n_steps=1)
    module = SimpleNamespace(log=logged.__setitem__)
    callback = throughput.Throughput()
    callback.on_train_start(trainer, module)
    trainer.global_step = 5
    callback.on_train_batch_end(trainer, module, None, [torch.zeros(4, 16)], 0)
    assert logged == {"chars_per_second": 3 * 2 * 5 * 4 * 16 / 4}


@pytest.mark.kills
@pytest.mark.parametrize(
    "options",
    [
        ["optimizer=muon", "trainer.accumulate_grad_batches=2", "data.num_workers=2", "callbacks.averaging.decay=0.9"],
        ["model=bigram", "trainer.gradient_clip_val=1", "trainer.precision=bf16-mixed"],
    ],
)
def test_variants_train_on_two(options, tiny, tmp_path):
    size = [each for each in tiny if not ("bigram" in options[0] and re.match(r"model\.n_(layer|head|embd)", each))]
    done = run_fresh("train.py", *size, *options, "trainer.devices=2", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr.replace("UserWarning: This DataLoader will create 2 worker", "")  # few cores
    assert done.stderr.count("Best validation loss") == 1
    assert_nobody_is_left(tmp_path)


# Who starts them


def test_torchrun(quiet, tiny, tmp_path):
    """One folder, of the first one's time, one log, one that speaks; and the very run that our own start makes."""
    done = by_torchrun(2, *tiny, *TWO, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Best validation loss") == done.stderr.count("Model: gpt") == 1
    [run] = tmp_path.glob("outputs/*/*")
    assert {file.name for file in tmp_path.iterdir()} == {"outputs"}
    assert {file.name for file in run.glob("*.log")} == {"train.log"}
    assert_same_end(quiet, run)
    assert [(p.step, p.val_loss) for p in read_curve(run)] == [(p.step, p.val_loss) for p in read_curve(quiet)]


def test_nodes_that_nobody_starts(tiny, tmp_path):
    done = run_script("train.py", *tiny, "trainer.num_nodes=2", f"hydra.run.dir={tmp_path}/run", timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: trainer.num_nodes=2 takes somebody to start the processes")


@pytest.mark.kills
def test_torchrun_with_another_number_of_devices(tiny, tmp_path):
    done = by_torchrun(2, *tiny, cwd=tmp_path)
    assert done.returncode == 1
    said = "error: torchrun has started 2 processes for this run, one per device, but trainer.devices=1 trainer."
    assert {line[: len(said)] for line in done.stderr.splitlines() if "error: " in line[:10]} == {said}
    assert not [*tmp_path.glob("outputs/*/*/checkpoints")]


def test_slurm(quiet, tiny, tmp_path):
    """Two nodes, by the variables that `srun` sets; interrupted, and gone on with by the same."""
    place = f"hydra.run.dir={tmp_path}/run"
    options = [each for each in TWO if each != "trainer.devices=2"]
    statuses, said = by_slurm(*tiny, *options, *signal_at(3, rank=1), place)
    assert statuses == [143, 143], said
    assert "Stopped after step 4. To go on: python train.py resume=" in said[0]
    assert "trainer.num_nodes=2" in said[0]
    statuses, said = by_slurm(f"resume={tmp_path}/run", "+callbacks.stop=null")
    assert statuses == [0, 0], said
    assert said[1] == ""
    assert_same_end(quiet, tmp_path / "run")
    assert read_curve(tmp_path / "run")[-1].val_loss == read_curve(quiet)[-1].val_loss


@pytest.mark.kills
def test_slurm_where_the_first_refuses(tiny, tmp_path):
    """The folder holds a run: only the first one can know."""
    start(tmp_path, *tiny)
    began = time.monotonic()
    statuses, said = by_slurm(*tiny, f"hydra.run.dir={tmp_path}")
    assert statuses == [2, 2], said
    assert said[0].splitlines()[-1].endswith("holds a run already; hydra.run.dir=... names another folder")
    assert said[1] == ""
    assert time.monotonic() - began < 60


def test_who_is_first(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert is_first()
    assert arguments_of_rank(["seed=1"]) == ["seed=1"]
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert is_first()
    monkeypatch.setenv("RANK", "2")
    assert not is_first()
    log = f"++hydra.job_logging.handlers.file.filename={os.devnull}"
    assert arguments_of_rank(["resume=null", "hydra.run.dir=a"]) == [
        "resume=null",
        "hydra.run.dir=a",
        "hydra.run.dir=.",
        log,
    ]
    assert arguments_of_rank(["resume=a", "hydra.run.dir=a"]) == ["resume=a", "hydra.run.dir=a", log]


@pytest.mark.parametrize(
    ("variables", "devices", "message"),
    [
        ({}, 1, None),
        ({"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "2"}, 2, None),
        ({"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "3"}, 2, "torchrun has started 3 processes .* makes 2"),
        ({"TORCHELASTIC_RUN_ID": "a"}, 1, "WORLD_SIZE is not a number of processes: ''"),
        ({"SLURM_NTASKS": "1"}, 1, None),
        ({"SLURM_NTASKS": "4"}, 1, "SLURM has started 4 processes"),
        ({"SLURM_NTASKS": "1"}, 2, "SLURM has started 1 process for"),
        ({"SLURM_NTASKS": "abc"}, 1, "SLURM_NTASKS is not a number of processes: 'abc'"),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"}, 1, None),
        ({"nodes": "2"}, 1, "trainer.num_nodes=2 takes somebody to start the processes of all nodes"),
        ({"nodes": "2", "NODE_RANK": "0"}, 1, None),
        ({"LOCAL_RANK": "1"}, 1, "started with LOCAL_RANK=1, which does not go with trainer.devices=1"),
    ],
)
def test_processes_that_do_not_go_with_the_devices(variables, devices, message, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    nodes = int(variables.pop("nodes", 1))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    strategy = SimpleNamespace(cluster_environment=LightningEnvironment()) if nodes > 1 else None
    sizes = {"num_devices": devices, "num_nodes": nodes, "world_size": nodes * devices}
    trainer = SimpleNamespace(**sizes, is_global_zero=True, strategy=strategy)
    if message is None:
        check_number(trainer)
        assert (launched() is None) == ("WORLD_SIZE" not in variables and variables.get("SLURM_NTASKS") != "1")
    else:
        with pytest.raises(UserError, match=message):
            check_number(trainer)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("fsdp", "trainer.strategy=fsdp shards the model, and is not supported: .* trainer.strategy=ddp has it whole"),
        ("{_target_: lightning.pytorch.strategies.FSDPStrategy}", "trainer.strategy=FSDPStrategy shards the model"),
        ("ddp_spawn", "trainer.strategy=ddp_spawn is for notebooks"),
    ],
)
def test_strategies_that_are_refused(strategy, message, tiny, tmp_path):
    with pytest.raises(UserError, match=message):
        train(composed(*tiny, f"run_dir={tmp_path / 'run'}", f"trainer.strategy={strategy}"))
    assert not (tmp_path / "run").exists()


def test_devices_of_a_cpu(tiny, tmp_path):
    """`auto` is one; as many as there are, no CPU has."""
    start(tmp_path / "auto", *tiny, "trainer.devices=auto")
    assert len(state(tmp_path / "auto")["random_states"]) == 1
    with pytest.raises(UserError, match=r"trainer: .*should be an int > 0"):
        train(composed(*tiny, f"run_dir={tmp_path / 'run'}", "trainer.devices=-1"))


PAGE = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for line in re.findall(r"^(?:python|torchrun|srun) .*", PAGE, re.MULTILINE)]


def test_commands_of_the_page(quiet, tiny, tmp_path):
    ours, torchrun, srun, same, other = COMMANDS
    assert ours[:2] == ["python", "train.py"]
    assert torchrun[:3] == ["torchrun", "--standalone", "--nproc-per-node=2"]
    assert ours[2:] == torchrun[4:] == ["trainer.devices=2", "data.batch_size=32"]
    said = dict(re.findall(r"#SBATCH --([\w-]+)=(.*)", PAGE))
    cfg = composed(*(each for each in srun[4:] if not each.startswith(("resume=", "hydra."))))
    assert srun[:4] == ["srun", "--kill-on-bad-exit=1", "python", "train.py"]
    assert (str(cfg.trainer.num_nodes), str(cfg.trainer.devices)) == (said["nodes"], said["ntasks-per-node"])
    run = tmp_path / "outputs/2026-01-31/12-00-00"
    shutil.copytree(quiet, run)
    for n, command in enumerate((same, other)):
        assert command[2] == f"resume={run.relative_to(tmp_path)}"
        done = run_script("train.py", *command[2:], f"trainer.max_steps={14 + n}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert ("This run had 2 devices and goes on with 1" in done.stderr) == (command == other)


# When one is stopped, or dies


@pytest.mark.parametrize(
    "seconds", [0, *(pytest.param(late, marks=pytest.mark.kills) for late in (0.01, 0.1, 0.5, 1, 2, 3, 4, 6))]
)
def test_ctrl_c_while_they_start(seconds, tiny, tmp_path):
    """It reaches all of them, as that of a terminal does; the first one ends them."""
    run = launch(*tiny, *TWO, "trainer.max_steps=100000", f"hydra.run.dir={tmp_path}/run", start_new_session=True)
    others = []
    while not others:
        time.sleep(0.05)
        assert run.poll() is None, run.communicate()[1]
        others = [each for each in processes_of(tmp_path) if each.parent.name != str(run.pid)]
    time.sleep(seconds)
    began = time.monotonic()
    os.killpg(run.pid, signal.SIGINT)
    try:
        said = run.communicate(timeout=60)[1]
    finally:
        run.kill()
    assert run.returncode == 130, said
    assert "Traceback" not in said
    assert "error" not in said
    assert "c10d" not in said
    assert_nobody_is_left(tmp_path)
    assert time.monotonic() - began < 15  # on a busy machine


def test_two_devices_interrupted(quiet, tiny, tmp_path):
    """Only the second has the signal; both stop, and with dropout the end is bitwise that of a quiet run."""
    done = run_script("train.py", *tiny, *TWO, *signal_at(3, rank=1), f"hydra.run.dir={tmp_path}/run", env=TESTS)
    assert done.returncode == 143, done.stderr
    assert done.stderr.count("Stopped after step 4. To go on: python train.py resume=") == 1
    assert "Traceback" not in done.stderr
    assert state(tmp_path / "run")["global_step"] == 4
    done = run_script("train.py", f"resume={tmp_path}/run", "+callbacks.stop=null")
    assert done.returncode == 0, done.stderr
    assert_same_end(quiet, tmp_path / "run")
    assert curves(quiet) == curves(tmp_path / "run")


@pytest.mark.kills
def test_a_signal_to_all(tiny, tmp_path):
    """As Ctrl-C in a terminal sends it: said once, saved once."""
    place = f"hydra.run.dir={tmp_path}/run"
    run = launch(*tiny, *TWO, "trainer.max_steps=100000", place, start_new_session=True)
    said = ""
    for line in run.stderr:
        said += line
        if "val loss" in line:
            break
    os.killpg(run.pid, signal.SIGINT)
    said += run.communicate(timeout=60)[1]
    assert run.returncode == 130, said
    assert said.count("SIGINT: stopping after this step") == said.count("Stopped after step") == 1
    assert "Traceback" not in said
    assert load_state(tmp_path / "run").step == int(re.search(r"Stopped after step (\d+)", said)[1])
    assert_nobody_is_left(tmp_path)


TRAINING, VALIDATION, SAVE = (
    ("on_train_batch_start", 7),
    ("on_validation_batch_start", 8),
    ("on_save_checkpoint", 9),
)


@pytest.mark.parametrize(
    ("rank", "when", "launcher"),
    [
        (1, TRAINING, "ours"),
        pytest.param(0, SAVE, "ours", marks=pytest.mark.kills),
        (1, TRAINING, "torchrun"),
        pytest.param(0, TRAINING, "slurm", marks=pytest.mark.kills),
        pytest.param(0, TRAINING, "ours", marks=pytest.mark.kills),
        pytest.param(1, VALIDATION, "ours", marks=pytest.mark.kills),
        pytest.param(1, TRAINING, "workers", marks=pytest.mark.kills),
        pytest.param(0, TRAINING, "workers", marks=pytest.mark.kills),
        pytest.param(1, VALIDATION, "slurm", marks=pytest.mark.kills),
    ],
)
def test_a_process_that_is_killed(rank, when, launcher, quiet, tiny, tmp_path):
    """It ends the others within seconds; one of them says so in one line, and the run goes on bit for bit."""
    place = f"hydra.run.dir={tmp_path}/run"
    harm = signal_at(when[1], when=when[0], rank=rank, signum=int(signal.SIGKILL), once=f"{tmp_path}/struck")
    if launcher == "slurm":
        options = [each for each in TWO if each != "trainer.devices=2"]
        statuses, said = by_slurm(*tiny, *options, *harm, place)
        assert statuses[rank] == -signal.SIGKILL
        assert statuses[1 - rank] == 1
        assert said[rank].count("error:") == 0
        said = "".join(said)
    elif launcher == "torchrun":
        done = by_torchrun(2, *tiny, *TWO, *harm, place, cwd=tmp_path)
        assert done.returncode == 1
        said = done.stderr.partition("Traceback")[0]  # of torchrun's own report
        assert done.stderr.count("Traceback") == 1, done.stderr
    else:  # those of loader workers outlive it for a while
        special = ["data.num_workers=2"] if launcher == "workers" else []
        done = run_fresh("train.py", *tiny, *TWO, *harm, *special, place, env=TESTS)
        assert done.returncode == (1 if rank else -signal.SIGKILL), done.stderr
        said = done.stderr
    ended = time.time()
    assert_nobody_is_left(tmp_path)
    assert ended - os.path.getmtime(tmp_path / "struck") < 30  # on a busy machine; the bound is 10
    assert "Traceback" not in said
    line = (
        f"error: another process of this run (rank {rank} of 2) ended unexpectedly; to go on: python train.py resume="
    )
    assert said.count(line) == said.count("error:") == 1, said
    assert load_state(tmp_path / "run").step == 6
    if launcher == "ours":
        done = run_fresh("train.py", f"resume={tmp_path}/run", "+callbacks.stop=null")
        assert done.returncode == 0, done.stderr
        assert_same_end(quiet, tmp_path / "run")
        assert not [*tmp_path.rglob("*.tmp")]


@pytest.mark.parametrize("said", [None, b"", b"\xff" * 43, b"GET / HTTP/1.1\r\n\r\n" * 9, b"0" * 32 + b"          1"])
def test_a_stranger_that_calls_is_nobody(said, monkeypatch):
    """Also one that says nothing, and does not hang up."""
    monkeypatch.setattr(ranks, "WORD", 0.2)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if said is not None:
            theirs.sendall(said)
            theirs.shutdown(socket.SHUT_WR)
        assert ranks.rank_that_calls(ours, "a" * 32) is None


def test_a_rank_that_calls_in_parts(monkeypatch):
    monkeypatch.setattr(ranks, "WORD", 20.0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        caller = threading.Thread(target=lambda: [(theirs.sendall(bytes([each])), time.sleep(0.002)) for each in word])
        word = f"{'a' * 32} {7:10}".encode()
        caller.start()
        assert ranks.rank_that_calls(ours, "a" * 32) == 7
        caller.join()


def test_one_that_dies_before_all_are_there(tiny, tmp_path):
    """The second cannot even begin: nobody waits for it for half an hour."""
    began = time.monotonic()
    harm = {"PYTHONPATH": str(tmp_path)}
    (tmp_path / "sitecustomize.py").write_text("import os\nif os.environ.get('LOCAL_RANK') == '1': os._exit(9)\n")
    done = run_fresh("train.py", *tiny, *TWO, f"hydra.run.dir={tmp_path}/run", env=harm)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "error: another process of this run (rank 1 of 2) ended unexpectedly; nothing was saved"
    )
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("rank", "error", "status", "message"),
    [
        (1, "memory", 1, "error: out of memory: a smaller data.batch_size needs less"),
        pytest.param(
            0,
            "disk",
            2,
            "error: cannot write to the output folder .*/run: No space left on device",
            marks=pytest.mark.kills,
        ),
        pytest.param(
            1,
            "disk",
            2,
            "error: cannot write to the output folder .*/run: No space left on device",
            marks=pytest.mark.kills,
        ),
        (1, "bug", 1, "error: this is not foreseen: KeyError: 'a bug'"),
        pytest.param(0, "bug", 1, "error: this is not foreseen: KeyError: 'a bug'", marks=pytest.mark.kills),
    ],
)
def test_an_error_of_one(rank, error, status, message, tiny, tmp_path):
    """All end, and the first one tells it, as it would its own."""
    harm = [f"+callbacks.harm={{_target_: faults.Raise, step: 7, error: {error}, rank: {rank}}}"]
    done = run_fresh("train.py", *tiny, *TWO, *harm, f"hydra.run.dir={tmp_path}/run", env=TESTS)
    assert done.returncode == status, done.stderr
    assert len(re.findall(message, done.stderr)) == done.stderr.count("error:") == 1
    assert done.stderr.count("Traceback") == (error == "bug")
    assert re.search(message, (tmp_path / "run" / "train.log").read_text(encoding="utf-8"))
    assert state(tmp_path / "run")["global_step"] == 6
    assert_nobody_is_left(tmp_path)


def test_another_number_of_devices_is_a_told_change(quiet, tiny, tmp_path, caplog):
    """From two to three, in processes; from three to one, in this one."""
    place = shutil.copytree(quiet, tmp_path / "run")
    done = run_script("train.py", f"resume={place}", "trainer.max_steps=15", "trainer.devices=3")
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count("This run had 2 devices and goes on with 3: from here on, batches and dropout are not") == 1
    )
    assert "Changed: trainer.devices=3 (was 2)" in done.stderr
    assert len(state(place)["random_states"]) == 3
    resume(place, "trainer.max_steps=18", "trainer.devices=1")
    assert "This run had 3 devices and goes on with 1" in caplog.text
    assert state(place)["global_step"] == 18
