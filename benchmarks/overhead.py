"""What Lightning, logging and the bar cost per step, and how soon things start: `python -m benchmarks.overhead`.

The same model, batches and optimizer, in a bare loop and through `train(cfg)` with its default callbacks and logger.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.measure import hardware, parser, seconds, spread, table
from chargpt.batches import RandomBlocks
from chargpt.data import CharDataModule
from chargpt.kernels.choice import best_precision
from chargpt.kernels.compiling import compile_model
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
    blocks = RandomBlocks(data.train_ids, settings.data.block_size, settings.data.batch_size, settings.data.seed)

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


def through_lightning(cfg, folder: Path) -> float:
    """Seconds per step as TensorBoard has it, between the first step and the last."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(cfg)
    reader = EventAccumulator(str(folder))
    reader.Reload()
    rates = [event.value for event in reader.Scalars("chars_per_second")][1:]
    return cfg.data.batch_size * cfg.data.block_size / statistics.harmonic_mean(rates)


def first_output(command: list[str], stream: str) -> float:
    """Seconds until a command prints its first character on the stream (for train.py: the line of a first step)."""
    started = time.perf_counter()
    with subprocess.Popen(command, text=True, **{stream: subprocess.PIPE}) as process:
        if stream == "stdout":
            process.stdout.read(1)
        else:
            next(line for line in process.stderr if line.startswith("step "))
        spent = time.perf_counter() - started
        process.kill()
    return spent


def imports(statement: str) -> float:
    return seconds(lambda: subprocess.run([sys.executable, "-c", statement], check=True))


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    arguments.add_argument("--steps", type=int, default=100, help="steps a round (default 100)")
    arguments = arguments.parse_args()
    precision = best_precision(arguments.device).name
    rows = [["model", "bare, ms per step", "train(cfg), ms per step", "ratio"]]
    with tempfile.TemporaryDirectory() as folder:
        for m, size in enumerate(arguments.sizes):
            loops, lightnings = [], []
            for n in range(arguments.repeats):
                run = Path(folder, f"{m}_{n}")
                overrides = [
                    *SIZES[size], "data=pydocs", f"run_dir={run}", f"trainer.max_steps={arguments.steps}",
                    f"trainer.accelerator={arguments.device}", f"trainer.precision={precision}",
                    f"compile={arguments.device == 'cuda'}", "trainer.limit_val_batches=0",
                ]  # fmt: skip
                cfg = composed(overrides)
                lightnings.append(1e3 * through_lightning(cfg, run))
                loops.append(1e3 * bare(read_config(cfg), arguments.steps, arguments.device))
            ratio = statistics.median(a / b for a, b in zip(lightnings, loops, strict=True))
            rows.append([size, spread(loops), spread(lightnings), f"{ratio:.2f}x"])
        print(hardware())
        print(f"{precision}; {arguments.steps} steps, medians of {arguments.repeats} rounds (range)\n")
        print(table(rows))

        checkpoint = run / "checkpoints" / "last.ckpt"
        step = [sys.executable, "train.py", *SIZES["tiny"], "data=pydocs", "trainer.max_steps=1"]
        rows = [["start", "seconds", "of the imports alone"]]
        for name, imported, command, stream in (
            ("train.py, first step", "import torch, lightning", [*step, f"hydra.run.dir={folder}/{{n}}"], "stderr"),
            (
                "sample.py, first character",
                "import torch",
                [sys.executable, "sample.py", f"--ckpt={checkpoint}"],
                "stdout",
            ),
        ):
            needed, spent = [], []
            for n in range(arguments.repeats):
                needed.append(imports(imported))
                spent.append(first_output([part.format(n=n) for part in command], stream))
            ratio = statistics.median(a / b for a, b in zip(spent, needed, strict=True))
            rows.append([name, spread(spent), f"{ratio:.2f}x of {statistics.median(needed):.2f} s"])
        print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
