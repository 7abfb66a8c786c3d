"""One run on several devices: what they compute, who starts the processes, and how a run ends."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, STEPS, assert_same_end, curves, launch, run_fresh, run_script, signal_at, state
from omegaconf import OmegaConf

from chargpt.errors import UserError
from chargpt.history import read_losses
from chargpt.run import devices
from chargpt.run.resume import load_state

pytestmark = pytest.mark.processes
kills = pytest.mark.kills

TWO = ["trainer.devices=2", "model.dropout=0.2", *STEPS]
LONG = [*TWO, "trainer.max_steps=100000"]


@pytest.fixture(autouse=True)
def no_process_is_left(tmp_path):
    """However a run ends."""
    yield
    for _ in range(100):
        if not (left := processes_in(tmp_path)):
            return
        time.sleep(0.1)
    raise AssertionError(left)


def train(*arguments, **options):
    """What a run in a new process prints."""
    return run_fresh("train.py", *arguments, **options).stderr


@pytest.fixture(scope="module")
def port():
    """A port in use."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory, port):
    """A run on two devices that ends well, whatever MASTER_PORT is."""
    folder = tmp_path_factory.mktemp("whole")
    printed = train(*tiny, *TWO, f"hydra.run.dir={folder}", env={"MASTER_PORT": port})
    assert printed.count("Best validation loss") == printed.count("Model: gpt") == 1
    assert "Warning" not in printed
    return folder


def processes_in(folder):
    """The ids of the processes of runs in a folder, with their ranks; where there is /proc."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if f"{folder}/".encode() in command and b"train.py" in command:
                variables = re.search(rb"(?:^|\0)RANK=(\d+)", (process / "environ").read_bytes())
                found[int(process.name)] = int(variables[1]) if variables else None
    return found


def by_slurm(*arguments, port=None, tasks=2):
    """Start train.py as `srun` does on two nodes, with one task on each; the exit statuses and what they print."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = port or str(server.getsockname()[1])
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "chargpt", "SLURM_NTASKS": "2", "SLURM_NNODES": "2"}
    job |= {"SLURM_NTASKS_PER_NODE": "1", "SLURM_LOCALID": "0", "SLURM_NODELIST": "127.0.0.1"}
    job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    options = ["trainer.num_nodes=2", "trainer.strategy=ddp", *arguments]
    runs = [launch(*options, env=job | {"SLURM_PROCID": str(n), "SLURM_NODEID": str(n)}) for n in range(tasks)]
    printed = [run.communicate(timeout=120)[1] for run in runs]
    return [run.returncode for run in runs], printed


# What they compute


ODD = ["data.split=[0.99,0.005,0.005]", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.1"]


@pytest.mark.parametrize(
    ("number", "batch", "more"), [(2, 64, ["data.split=[0.8, 0.1, 0.1]"]), pytest.param(3, 12, ODD, marks=kills)]
)
def test_several_devices_do_what_one_does(number, batch, more, tiny, tmp_path):
    """Training by 2 x 32 follows 1 x 64. Validation and test text are scored once, also where a device has no share."""
    every = [*tiny, *more, "model.dropout=0", "trainer.log_every_n_steps=1"]
    options = [f"trainer.devices={number}", f"data.batch_size={batch // number}"]
    assert "Warning" not in train(*every, *options, f"hydra.run.dir={tmp_path}/several")
    run_script("train.py", *every, f"data.batch_size={batch}", f"hydra.run.dir={tmp_path}/one")
    one, several = curves(tmp_path / "one"), curves(tmp_path / "several")
    assert one.keys() == several.keys()
    for tag in ["train/loss", "train/grad_norm", "lr", "val/loss", "val/accuracy", "val/best_loss", "test/loss"]:
        assert [step for step, _ in one[tag]] == [step for step, _ in several[tag]], tag
        assert [value for _, value in several[tag]] == pytest.approx([value for _, value in one[tag]], rel=1e-5), tag
    a, b = state(tmp_path / "one")["state_dict"], state(tmp_path / "several")["state_dict"]
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-4, atol=1e-6, msg=name)


# Who starts them


@pytest.mark.parametrize(
    ("accelerator", "asked", "number"),
    [
        *(("cpu", asked, number) for asked, number in ((3, 3), ("2", 2), ("auto", 1), (-1, 1), (0, 1), (None, 1))),
        *(("gpu", asked, number) for asked, number in (([0, 2], 2), ("0,1", 2), ("3,", 1), ([5], 1))),
        *(("auto", asked, 4) for asked in (-1, "auto", 4)),
    ],
)
def test_number_of_devices(accelerator, asked, number, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    trainer = OmegaConf.create({"accelerator": accelerator, "devices": asked})
    assert devices.number_of_devices(trainer) == number


def test_torchrun(whole, tiny, tmp_path):
    """One folder, one log, one process that prints; and the very run that `trainer.devices=2` makes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(ROOT / "train.py"), *tiny, *TWO]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Best validation loss") == done.stderr.count("Model: gpt") == 1
    [run] = tmp_path.glob("outputs/*/*")
    assert {file.name for file in tmp_path.iterdir()} == {"outputs"}
    assert {file.name for file in run.glob("*.log")} == {"train.log"}
    assert_same_end(whole, run)
    assert [(p.step, p.val_loss) for p in read_losses(run)] == [(p.step, p.val_loss) for p in read_losses(whole)]


@kills
def test_slurm(whole, tiny, tmp_path, port):
    """Two nodes; interrupted, and resumed in the same way."""
    place = f"hydra.run.dir={tmp_path}/run"
    options = [each for each in TWO if each != "trainer.devices=2"]
    statuses, printed = by_slurm(*tiny, *options, *signal_at(3, rank=1), place)
    assert statuses == [143, 0], printed
    assert "Stopped after step 4; to resume: python train.py resume=" in printed[0]
    statuses, printed = by_slurm(*tiny, *options, f"resume={tmp_path}/run", "+callbacks.stop=null")
    assert statuses == [0, 0], printed
    assert printed[1] == ""
    assert_same_end(whole, tmp_path / "run")
    statuses, printed = by_slurm(*tiny, *options, f"hydra.run.dir={tmp_path}/other", port=port, tasks=1)
    assert statuses == [2]
    assert re.fullmatch(rf"error: .*port: {port}.*", printed[0].splitlines()[-1])


@pytest.mark.parametrize(
    ("variables", "number", "nodes", "message"),
    [
        ({"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "2"}, 2, 1, None),
        ({"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "3"}, 2, 1, "needs 2 processes, one per device, but 3 started"),
        ({"SLURM_NTASKS": "4"}, 1, 1, "trainer.devices=1 trainer.num_nodes=1 needs 1 processes, .* 4 started"),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"}, 1, 1, None),
        ({}, 1, 2, "trainer.num_nodes=2 needs 2 processes, .* 1 started; srun and torchrun"),
    ],
)
def test_processes_that_do_not_match_the_devices(variables, number, nodes, message, monkeypatch):
    for name in (*devices.RANKS, "SLURM_NTASKS", "SLURM_JOB_NAME", "TORCHELASTIC_RUN_ID", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    world = nodes * number
    trainer = SimpleNamespace(num_devices=number, num_nodes=nodes, world_size=world, is_global_zero=True)
    with pytest.raises(UserError, match=message) if message else contextlib.nullcontext():
        devices.check_number(trainer)


def test_commands_of_the_page(whole, tiny, tmp_path):
    page = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")
    commands = re.findall(r"^(?:python|torchrun|srun) .*", page, re.MULTILINE)
    here, torchrun, srun, same, other = map(shlex.split, commands)
    assert here[2:] == torchrun[4:] == ["trainer.devices=2", "data.batch_size=32"]
    sbatch, options = dict(re.findall(r"#SBATCH --([\w-]+)=(.*)", page)), dict(each.split("=") for each in srun[4:])
    assert (options["trainer.num_nodes"], options["trainer.devices"]) == (sbatch["nodes"], sbatch["ntasks-per-node"])
    assert same == other[:-1]
    run = shutil.copytree(whole, tmp_path / "outputs/2026-01-31/12-00-00")
    done = run_script("train.py", *other[2:], "trainer.max_steps=14", cwd=tmp_path)
    assert "2 device(s) before, 1 now" in done.stderr
    before, after = state(whole)["random_states"], state(run)["random_states"]
    assert len(after) == 1
    assert not torch.equal(before[0]["cpu"], before[1]["cpu"])  # each device draws its own dropout


# How a run ends


@pytest.mark.parametrize("seconds", [0, *(pytest.param(late, marks=kills) for late in (1, 4))])
def test_ctrl_c_while_they_start(seconds, tiny, tmp_path):
    run = launch(*tiny, *LONG, f"hydra.run.dir={tmp_path}/run", start_new_session=True)
    while set(processes_in(tmp_path).values()) <= {None}:
        time.sleep(0.02)
        assert run.poll() is None, run.communicate()[1]
    time.sleep(seconds)
    os.killpg(run.pid, signal.SIGINT)
    printed = run.communicate(timeout=60)[1]
    assert run.returncode == 130, printed
    assert "Traceback" not in printed
    assert "error" not in printed


def running(tmp_path, tiny, *more):
    """A run on two devices that has begun to train, and its messages so far."""
    run = launch(*tiny, *LONG, *more, f"hydra.run.dir={tmp_path}/run", start_new_session=True)
    printed = ""
    for line in run.stderr:
        printed += line
        if "val loss" in line:
            break
    return run, printed


@pytest.mark.parametrize(
    ("send", "signum", "times"),
    [
        (os.killpg, signal.SIGINT, 1),
        pytest.param(os.kill, signal.SIGHUP, 1, marks=kills),
        pytest.param(os.kill, signal.SIGTERM, 2, marks=kills),
    ],
)
def test_a_signal(send, signum, times, tiny, tmp_path):
    """To the process group, as Ctrl-C in a terminal, or to the first process only; the second time it ends at once."""
    run, printed = running(tmp_path, tiny)
    if times == 2:  # a process that hangs can save nothing
        os.kill(next(pid for pid, rank in processes_in(tmp_path).items() if rank == 1), signal.SIGSTOP)
    for _ in range(times):
        send(run.pid, signum)
        send(run.pid, signum)  # as if a launcher forwarded it, too
        time.sleep(1)
    printed += run.communicate(timeout=60)[1]
    assert run.returncode == 128 + signum, printed
    assert printed.count(f"{signum.name}: stopping after this step") == 1
    assert "Traceback" not in printed
    if times == 1:
        assert printed.count("Stopped after step") == 1
        assert load_state(tmp_path / "run").step == int(re.search(r"Stopped after step (\d+)", printed)[1])


@kills
def test_a_signal_after_which_nothing_can_be_saved(tiny, tmp_path):
    """The status is that of the error."""
    rarely = ["trainer.val_check_interval=100", "callbacks.last_checkpoint.every_n_steps=1000000"]
    run, printed = running(tmp_path, tiny, *rarely)
    time.sleep(0.5)  # the best checkpoint is being saved
    run.send_signal(signal.SIGINT)
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "elsewhere")
    (tmp_path / "run" / "checkpoints").touch()
    printed += run.communicate(timeout=60)[1]
    assert run.returncode == 2, printed
    assert len(re.findall("error: (?:Not a directory|No such file|File exists)", printed)) == 1


@kills
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they train on")
def test_the_process_that_started_them_is_killed(tiny, tmp_path):
    run, _ = running(tmp_path, tiny)
    run.kill()
    run.communicate(timeout=60)  # until the others have closed standard error
    assert load_state(tmp_path / "run").step


@pytest.mark.parametrize(
    ("rank", "step", "when"),
    [
        (1, 7, "on_train_batch_start"),
        pytest.param(0, 9, "on_save_checkpoint", marks=kills),
        pytest.param(1, 8, "on_validation_batch_start", marks=kills),
    ],
)
def test_one_process_is_interrupted_and_one_killed(rank, step, when, whole, tiny, tmp_path):
    """After a signal, both stop. After a kill, the other ends within seconds, and one line shows which one it was. The
    run ends bit for bit as one that was not interrupted, dropout included."""
    folder = tmp_path / "run"
    printed = train(*tiny, *TWO, *signal_at(3, rank=1), f"hydra.run.dir={folder}", status=143)
    assert printed.count("Stopped after step 4; to resume: python train.py resume=") == 1
    assert state(folder)["global_step"] == 4
    harm = signal_at(step, when=when, rank=rank, signum=int(signal.SIGKILL), once=f"{tmp_path}/struck")
    printed = train(f"resume={folder}", *harm, status=1)
    assert time.time() - os.path.getmtime(tmp_path / "struck") < 30  # on a busy machine
    [line] = [line for line in printed.splitlines() if "error" in line]
    killed = rf"error: process {rank} of the 2 of this run was killed \(SIGKILL\); to resume: python train.py resume=.*"
    assert re.fullmatch(killed, line)
    assert "Traceback" not in printed
    assert load_state(folder).step == 6
    train(f"resume={folder}", "+callbacks.stop=null")
    assert_same_end(whole, folder)
    assert curves(whole) == curves(folder)


@kills
def test_a_process_ends_before_it_has_begun(tiny, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import os\nif os.environ.get('LOCAL_RANK') == '1': os._exit(9)\n")
    place = f"hydra.run.dir={tmp_path}/run"
    printed = train(*tiny, *TWO, place, status=1, env={"PYTHONPATH": str(tmp_path)})
    expected = "error: process 1 of the 2 of this run ended with status 9; nothing was saved"
    assert printed.splitlines()[-1] == expected


@pytest.mark.parametrize(
    ("rank", "error", "status"),
    [(1, "bug", 1), *(pytest.param(*each, marks=kills) for each in ((1, "memory", 1), (0, "disk", 2)))],
)
def test_an_error_of_one_process(rank, error, status, tiny, tmp_path):
    """All end, and it is shown once, in the log too."""
    harm = [f"+callbacks.harm={{_target_: faults.Raise, step: 7, error: {error}, rank: {rank}}}"]
    printed = train(*tiny, *TWO, *harm, f"hydra.run.dir={tmp_path}/run", status=status)
    message = {"memory": "out of memory", "disk": "No space left", "bug": "unexpected KeyError: 'a bug'"}[error]
    for written in (printed, (tmp_path / "run" / "train.log").read_text(encoding="utf-8")):
        assert written.count(message) == len(re.findall(r"^(?:\[.*\] )?error:", written, re.MULTILINE)) == 1
        assert written.count("Traceback") == (error == "bug")
    assert state(tmp_path / "run")["global_step"] == 6


def test_an_error_of_all_processes(tiny, tmp_path):
    printed = train(*tiny, *TWO, "trainer.precision=bogus", f"hydra.run.dir={tmp_path}/run", status=2)
    assert re.fullmatch(r"error: trainer: .*bogus.*\n", printed)
