"""`train(cfg)` from end to end, and `train.py` as a process where that is what matters."""

import os
import re

import pytest
import torch
from conftest import ROOT, composed, run_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from chargpt.checkpoint import load_checkpoint
from chargpt.data import SequentialBlocks
from chargpt.errors import UserError
from train import train


def events(folder):
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return reader


def steps(reader, tag):
    return [event.step for event in reader.Scalars(tag)]


def texts(reader, tag):
    return [event.tensor_proto.string_val[0].decode() for event in reader.Tensors(f"{tag}/text_summary")]


def test_what_a_run_leaves(tiny_run):
    found = {str(file.relative_to(tiny_run)) for file in tiny_run.rglob("*") if file.is_file()}
    assert {"checkpoints/best.ckpt", "checkpoints/last.ckpt"} < found
    assert any("tfevents" in name for name in found)


def test_curves(tiny_run):
    reader = events(tiny_run)
    val = ["val/loss", "val/perplexity", "val/bpc", "val/accuracy", "val/best_loss"]
    for tag in ("train/loss", "train/grad_norm", "lr", "chars_per_second"):
        assert steps(reader, tag) == [2, 4, 6], tag
    for tag in val:
        assert sorted(set(steps(reader, tag))) == [3, 6], tag
    loss, perplexity, bpc = (reader.Scalars(tag)[-1].value for tag in val[:3])
    assert perplexity == pytest.approx(torch.tensor(loss).exp().item(), rel=1e-5)
    assert bpc == pytest.approx(loss / 0.6931472, rel=1e-5)
    assert 0 < reader.Scalars("val/accuracy")[-1].value < 1


def test_validation_loss_is_the_mean_over_the_whole_split(tiny_run, text_file):
    """Computed again from the checkpoint, one character at a time in float64."""
    model, tokenizer = load_checkpoint(tiny_run / "checkpoints" / "last.ckpt")
    text = text_file.read_text()
    ids = torch.tensor(tokenizer.encode(text[int(0.9 * len(text)) :]))
    total = 0.0
    for inputs, targets in [SequentialBlocks(ids.numpy(), 16, 1)[n] for n in range((len(ids) + 14) // 16)]:
        logp = model.double()(inputs).log_softmax(-1)
        total -= logp.gather(-1, targets[..., None]).sum().item()
    logged = events(tiny_run).Scalars("val/loss")[-1].value
    assert logged == pytest.approx(total / (len(ids) - 1), rel=1e-5)


def test_tensorboard_tells_what_ran(tiny_run, text_file):
    reader = events(tiny_run)
    (config,) = texts(reader, "config")
    assert "    n_layer: 2\n" in config
    assert config.startswith(f"    # trained on {text_file}\n")
    samples = texts(reader, "sample")
    assert len(samples) == 2
    assert all(len(sample.replace("\n    ", "\n")) == 4 + 1 + 8 for sample in samples)  # prompt and 8 characters


def test_hparams_tab(tiny_run, text_file):
    data = events(tiny_run).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    hparams = HParamsPluginData.FromString(data).session_start_info.hparams
    assert hparams["model/n_layer"].number_value == 2
    assert hparams["optimizer/lr"].number_value == pytest.approx(3e-4)
    assert hparams["text"].string_value == str(text_file)
    experiment = events(tiny_run).summary_metadata["_hparams_/experiment"].plugin_data.content
    metrics = [info.name.tag for info in HParamsPluginData.FromString(experiment).experiment.metric_infos]
    assert metrics == ["val/best_loss"]


def test_best_loss_is_returned_and_kept(tiny, tmp_path):
    best = train(composed(*tiny, f"run_dir={tmp_path}", "optimizer.lr=0.3"))  # diverges: the best is not the last
    values = [event.value for event in events(tmp_path).Scalars("val/loss")]
    assert best == pytest.approx(min(values))
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] in (3, 6)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6


def test_the_last_steps_are_scored_and_saved(tiny, tmp_path):
    """4 steps, validation every 3, a save every 250."""
    train(composed(*tiny, f"run_dir={tmp_path}", "trainer.max_steps=4"))
    assert len(events(tmp_path).Scalars("val/loss")) == 2
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_same_seed_same_weights(tiny, tiny_run, tmp_path):
    train(composed(*tiny, f"run_dir={tmp_path / 'same'}", "callbacks.text_samples=null"))
    train(composed(*tiny, f"run_dir={tmp_path / 'other'}", "seed=7"))
    same, other, first = weights(tmp_path / "same"), weights(tmp_path / "other"), weights(tiny_run)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_accumulation_keeps_steps_true(tiny, tmp_path):
    """Two batches of 4 a step are one batch of 8 in all but the draw; every count stays one of optimizer steps."""
    train(composed(*tiny, f"run_dir={tmp_path}", "trainer.accumulate_grad_batches=2"))
    reader = events(tmp_path)
    assert len(reader.Scalars("val/loss")) == 2
    assert steps(reader, "train/loss") == steps(reader, "train/grad_norm") == [2, 4, 6]
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=bigram", "~model.n_layer"],
        ["trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1.0"],
        ["optimizer.schedule=cosine", "optimizer.warmup_steps=2"],
        ["data.num_workers=2"],
        ["+trainer.fast_dev_run=true"],
        ["trainer.logger=false"],
        ["+trainer.limit_val_batches=0"],
        ["+trainer.enable_checkpointing=false", "+trainer.enable_progress_bar=false"],
        ["trainer.num_sanity_val_steps=1"],
    ],
)
def test_variants_train(tiny, tmp_path, overrides):
    if "model=bigram" in overrides:
        tiny = [each for each in tiny if not re.match(r"model\.n_", each)]
        overrides = ["model=bigram"]
    train(composed(*tiny, f"run_dir={tmp_path}", *overrides))


def test_a_folder_holds_one_run(tiny, tiny_run):
    before = weights(tiny_run)
    with pytest.raises(UserError, match="holds a run already"):
        train(composed(*tiny, f"run_dir={tiny_run}"))
    assert all(torch.equal(before[name], value) for name, value in weights(tiny_run).items())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.path=none.txt", "no text at"),
        ("model.block_size=100000", "needs 100,001"),
        ("model.n_head=3", "divisible"),
        ("seed=-1", "seed must be"),
        ("seed=4294967296", "seed must be"),
        ("+trainer.devcies=2", "did you mean"),
        ("+colour=red", "unknown key"),
        ("optimizer.lr=-1", "optimizer.lr"),
    ],
)
def test_bad_input_leaves_nothing_half_written(tiny, tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        train(composed(*tiny, f"run_dir={tmp_path / 'run'}", override))
    assert not (tmp_path / "run").exists()


# From here on in processes of their own.


def test_a_run_by_hand(tiny, tmp_path):
    done = run_script("train.py", *tiny, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for pattern in (
        r"Text: .*verse\.txt, [\d,]+ characters, \d+ of them distinct",
        r"Model: gpt, [\d,]+ parameters, on cpu in 32-true",
        r"step 3/6, loss \d\.\d{4}, val loss \d\.\d{4}, [\d,]+ chars/s, 00:\d\d left",
        r"Best validation loss \d\.\d{4} \(nats a character, on .*verse\.txt\), 6 steps in \d+ s",
        rf"Checkpoint:  {tmp_path}/run/checkpoints/best\.ckpt",
        rf"Sample it:   python sample\.py --ckpt {tmp_path}/run",
        rf"See curves:  tensorboard --logdir {tmp_path}/run",
    ):
        assert re.search(pattern, done.stderr), (pattern, done.stderr)
    assert "Warning" not in done.stderr
    log = (tmp_path / "run" / "train.log").read_text()
    assert "Best validation loss" in log
    assert "verse.txt" in log
    assert (tmp_path / "run" / ".hydra" / "config.yaml").exists()


def test_a_sweep(tiny, tmp_path):
    """Four jobs, one of them impossible: it leaves its reason in its own log, the rest go on, the status tells."""
    arguments = ["-m", *tiny, f"hydra.sweep.dir={tmp_path}", "model.n_head=2,3", "optimizer.lr=1e-3,1e-2"]
    done = run_script("train.py", *arguments, "hydra.job.config.override_dirname.exclude_keys=[data.path]")
    assert done.returncode == 1
    assert done.stderr.rstrip().splitlines()[-1].startswith("error: 2 of the sweep's jobs failed: ")
    assert "Traceback" not in done.stderr
    jobs = sorted(folder for folder in tmp_path.iterdir() if folder.is_dir())
    assert len(jobs) == 4
    for job in jobs:
        good = "model.n_head=2" in job.name
        assert "optimizer.lr=" in job.name
        assert (job / "checkpoints" / "best.ckpt").exists() == good
        assert ("error: model.n_embd must be divisible" in (job / "train.log").read_text()) != good
        if good:
            assert events(job).Scalars("val/best_loss")


def test_two_devices(tiny, tmp_path):
    """Two processes: the validation loss is still that of the whole split, once, and one of them speaks."""
    done = run_script("train.py", *tiny, "trainer.devices=2", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Best validation loss") == 1
    assert "Warning" not in done.stderr
    assert "sync_dist" not in done.stderr
    model, _ = load_checkpoint(tmp_path / "run")
    assert sum(p.numel() for p in model.parameters()) > 0
    done = run_script("train.py", "-m", *tiny, "trainer.devices=2", "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep")
    assert done.returncode == 1
    assert "error: a sweep trains each job on one device" in done.stderr


def test_bad_input_in_one_line(tiny, tmp_path):
    done = run_script("train.py", *tiny, "model.n_head=3", f"hydra.run.dir={tmp_path}/run")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: model.n_embd must be divisible by model.n_head; got 16 and 3\n"
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_hydra_keeps_its_own_words(tmp_path):
    done = run_script("train.py", "model.n_layr=3", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 1
    assert "Key 'n_layr' not in 'GPTConfig'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_output_folder_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "file").touch()
    for option in ([f"hydra.run.dir={tmp_path}/file/run"], ["-m", f"hydra.sweep.dir={tmp_path}/file/runs", "seed=1,2"]):
        done = run_script("train.py", *option, *tiny)
        assert done.returncode == 2
        assert re.fullmatch(r"error: cannot write to the output folder .*: Not a directory; hydra.*\n", done.stderr)


def test_help_and_job_are_quick_to_show():
    done = run_script("train.py", "--cfg", "job", "run_dir=x")
    assert done.returncode == 0
    assert "n_embd: 384" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif("CHARGPT_DATA_DIR" not in os.environ, reason="needs the real text, in CHARGPT_DATA_DIR")
def test_the_cpu_experiment_keeps_its_promise(tmp_path):
    threads = {"OMP_NUM_THREADS": str(os.cpu_count())}
    done = run_script(
        "train.py", "experiment=cpu", "data.fallback=null", f"hydra.run.dir={tmp_path}/run", timeout=600, env=threads
    )
    assert done.returncode == 0, done.stderr
    loss, seconds = re.search(r"Best validation loss ([\d.]+) .* in (\d+) s", done.stderr).groups()
    print(f"experiment=cpu: val loss {loss} in {seconds} s")
    assert float(loss) <= 1.75


def test_git_keeps_the_outputs_folder_and_nothing_in_it():
    assert (ROOT / "outputs" / ".gitkeep").exists()
    assert "outputs/*" in (ROOT / ".gitignore").read_text().splitlines()
