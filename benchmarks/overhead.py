"""What Lightning costs per step, and how long things take to start: `python -m benchmarks.overhead`.

The same steps in a bare loop, and through `train(cfg)` with the default callbacks and logger.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from omegaconf import DictConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.measure import hardware, parser, seconds, spread, table
from chargpt.batches import RandomBlocks
from chargpt.data import CharDataModule
from chargpt.kernels.choice import best_precision, compile_model
from chargpt.module import CharLM
from chargpt.optim import lr_factor
from chargpt.run.config import Settings, composed, read_config
from train import train

SIZES = {
    "tiny": ["model.n_layer=1", "model.n_head=1", "model.n_embd=16", "model.block_size=16", "data.batch_size=8"],
    "experiment=cpu": ["experiment=cpu"],
    "the lecture's": [],
}


def bare(settings: Settings, steps: int, device: str) -> float:
    """Seconds per step without Lightning, in the same precision."""
    data = CharDataModule(settings.data)
    data.setup()
    torch.manual_seed(settings.seed)
    module = CharLM(settings.model, settings.optimizer, data.corpus.tokenizer.characters).to(device)
    compile_model(module.net, settings.compile, torch.device(device), steps)
    optimizer = settings.optimizer.build(module.net)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(settings.optimizer, step, steps))
    clip = settings.trainer["gradient_clip_val"]
    blocks = RandomBlocks(data.train_ids, settings.data, data.tokenizer.vocab_size)

    def loop(first: int, last: int) -> None:
        for step in range(first, last):
            inputs, targets = (ids.to(device, non_blocking=True) for ids in blocks[step])
            with torch.autocast(device, torch.bfloat16, enabled="bf16" in settings.trainer["precision"]):
                loss = module.training_loss(inputs, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(module.net.parameters(), clip)
            optimizer.step()
            schedule.step()

    loop(0, 2)
    return seconds(lambda: loop(2, steps), device) / (steps - 2)


def through_lightning(cfg: DictConfig, folder: Path) -> float:
    """Seconds per step between the first logged step and the last, from TensorBoard's file."""
    train(cfg)
    reader = EventAccumulator(str(folder))
    reader.Reload()
    rates = [event.value for event in reader.Scalars("chars_per_second")][1:]
    return cfg.data.batch_size * cfg.data.block_size / statistics.harmonic_mean(rates)


def start(script: str, stream: str, expected: str, *arguments: str) -> float:
    """Seconds until a script prints a line that begins as expected."""
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, script, *arguments], text=True, **{stream: subprocess.PIPE}) as process:
        next(line for line in getattr(process, stream) if line.startswith(expected))
        spent = time.perf_counter() - started
        process.kill()
    return spent


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--steps", type=int, default=100, help="steps per round (default 100)")
    arguments = arguments.parse_args()
    precision, rounds = best_precision(arguments.device).name, range(arguments.repeats)
    rows = [["model", "bare, ms per step", "train(cfg), ms per step", "ratio"]]
    with tempfile.TemporaryDirectory() as folder:
        for size, of_size in SIZES.items():
            loops, lightnings = [], []
            for n in rounds:
                run = Path(folder, f"{len(rows)}_{n}")
                overrides = [
                    *of_size, "data=pydocs", f"run_dir={run}", f"trainer.max_steps={arguments.steps}",
                    f"trainer.accelerator={arguments.device}", f"trainer.precision={precision}",
                    f"compile={arguments.device == 'cuda'}", "trainer.limit_val_batches=0",
                ]  # fmt: skip
                run.mkdir()
                cfg = composed(overrides)
                lightnings.append(1e3 * through_lightning(cfg, run))
                loops.append(1e3 * bare(read_config(cfg), arguments.steps, arguments.device))
            ratio = statistics.median(a / b for a, b in zip(lightnings, loops, strict=True))
            rows.append([size, spread(loops), spread(lightnings), f"{ratio:.2f}x"])
        print(f"{hardware()}\n{precision}; {arguments.steps} steps, medians of {arguments.repeats} rounds (range)\n")
        print(f"{table(rows)}\n")
        once = [*SIZES["tiny"], "data=pydocs", "trainer.max_steps=1"]
        firsts = [start("train.py", "stderr", "step ", *once, f"hydra.run.dir={folder}/{n}") for n in rounds]
        texts = [start("sample.py", "stdout", "", f"--ckpt={run}", "--stop=\n") for n in rounds]
        print(f"To the first step of train.py: {spread(firsts, ' s')}; to a line of sample.py: {spread(texts, ' s')}")


if __name__ == "__main__":
    main()
