"""The formulas of what a step costs, held to the model itself."""

import pytest
import torch
import torch.distributed as dist
from helpers import OPTIONS, TINY, start
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import costs
from benchmarks.costs import Machine, Step
from chargpt.kernels import choice
from chargpt.model import BigramConfig, GPTConfig, build_model
from chargpt.module import CharLM
from chargpt.optim import OPTIMIZER_CONFIGS

SIZES = {"block_size": 100, "n_layer": 2, "n_head": 2, "n_embd": 32}  # 100: the last block of queries is shorter
MODELS = [BigramConfig(8), GPTConfig(), *(GPTConfig(**SIZES, **options) for options in OPTIONS)]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_parameters_are_those_of_the_model(model):
    net = build_model(model, 65)
    assert costs.parameters(model) == sum(weight.numel() for weight in net.parameters())
    assert costs.matrices(model) == sum(
        weight.numel() for name, weight in net.named_parameters() if weight.dim() == 2 and "embedding" not in name
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_flops_are_those_that_pytorch_counts(options, monkeypatch):
    """To the last one, with attention as a CPU computes it, in fp32: of oneDNN's products PyTorch counts none."""
    monkeypatch.setattr(choice, "forced_onednn", False)
    step = Step(GPTConfig(**SIZES, **options, dropout=0.1), B=2, half=False)
    net = build_model(step.model, step.V)
    with FlopCounterMode(display=False) as counter:
        logits = net(torch.zeros(step.B, step.model.block_size, dtype=torch.int64))
        forward = counter.get_total_flops()
        logits.sum().backward()
    assert forward == costs.forward_flops(step)
    assert counter.get_total_flops() == costs.flops(step) == 3 * forward


def test_flops_of_all_pairs_are_more():
    """Where attention is not taken in blocks, PyTorch counts the future, too: 4 T^2 C per layer and sequence."""
    step = Step(GPTConfig(), B=1)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        build_model(step.model, step.V)(torch.zeros(1, 256, dtype=torch.int64))
    assert counter.get_total_flops() - costs.forward_flops(step) == 4 * 6 * 384 * (256**2 - costs.pairs(256))


def test_flops_of_muon():
    step = Step(GPTConfig(**SIZES), B=1, optimizer="muon")
    net = build_model(step.model, step.V)
    optimizer = OPTIMIZER_CONFIGS["muon"]().build(net)
    for weight in net.parameters():
        weight.grad = torch.ones_like(weight)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert counter.get_total_flops() == costs.optimizer_flops(step)


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]], ids=str)
def test_memory_and_traffic(half, dropout, options, monkeypatch):
    """A CPU takes the 64 blocks in two parts."""
    monkeypatch.setattr(choice, "forced_onednn", None if half else False)
    step = Step(GPTConfig(**SIZES | {"n_embd": 64}, **options, dropout=dropout), B=64, half=half)
    counts = costs.count(step)
    assert costs.kept_bytes(step) == pytest.approx(counts.kept, rel=1e-3)
    assert costs.training_bytes(step) == pytest.approx(counts.training, rel=0.1)
    assert costs.operators(step) == pytest.approx(counts.operators, rel=0.1)
    assert costs.moved_bytes(step) == pytest.approx(counts.moved, rel=0.1)


def test_memory_and_traffic_of_a_bigram():
    step = Step(BigramConfig(64), B=64)
    counts = costs.count(step)
    assert costs.kept_bytes(step) == pytest.approx(counts.kept, rel=1e-3)
    assert costs.training_bytes(step) == pytest.approx(counts.training, rel=0.05)
    assert costs.operators(step) == counts.operators
    assert costs.moved_bytes(step) == pytest.approx(counts.moved, rel=0.05)


@pytest.mark.parametrize("name", OPTIMIZER_CONFIGS)
def test_state_of_an_optimizer(name):
    """But for a count of steps for each tensor."""
    step = Step(GPTConfig(**SIZES), B=1, optimizer=name)
    net = build_model(step.model, step.V)
    optimizer = OPTIMIZER_CONFIGS[name]().build(net)
    for weight in net.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    assert sum(value.nbytes for value in kept) == costs.optimizer_bytes(step)


@pytest.mark.parametrize("averaged", [False, True])
def test_checkpoints(averaged, tiny, tmp_path):
    options = ["optimizer=muon", "model.n_embd=64", *(["callbacks.averaging.decay=0.9"] if averaged else [])]
    start(tmp_path, *TINY, *tiny, *options)
    settings = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["hyper_parameters"]
    step = Step(GPTConfig(**settings["model"]), 4, "muon", V=len(settings["characters"]))
    sizes = [(tmp_path / "checkpoints" / name).stat().st_size for name in ("best.ckpt", "last.ckpt")]
    for size, numbers in zip(sizes, costs.checkpoint_bytes(step, averaged), strict=True):
        assert numbers < size < numbers + 100_000


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_cache(options):
    net = build_model(GPTConfig(**SIZES, **options), 65)
    cache = net.new_cache(3)
    assert costs.cache_bytes(net.config, 3) == cache.keys_and_values.nbytes + cache.previous.nbytes


def test_devices_exchange_all_gradients_in_fp32(tmp_path):
    """As DistributedDataParallel, which Lightning takes, hands them over."""
    config = GPTConfig(**SIZES)
    module = CharLM(config, OPTIMIZER_CONFIGS["adamw"](), "".join(map(chr, range(65))))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    handed = []

    def note(_, bucket):
        handed.append(bucket.buffer().nbytes)
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    try:
        net = torch.nn.parallel.DistributedDataParallel(module.net)
        net.register_comm_hook(None, note)
        with torch.autocast("cpu", torch.bfloat16):
            loss = module.loss(net(torch.zeros(2, 8, dtype=torch.int64)), torch.zeros(2, 8, dtype=torch.int64))
        loss.backward()
    finally:
        dist.destroy_process_group()
    assert costs.exchanged_bytes(config, 2) == sum(handed) == 4 * (costs.parameters(config))
    assert costs.exchanged_bytes(config, 1) == 0


def test_prices_are_found_again():
    """From the times of a machine of given prices; none is found to be below its least."""
    steps = list(costs.small(half=True).values())
    nothing = Machine(0, 0, 0, 0)
    for machine in (Machine(5e-6, 1e-12, 4e-12, 2e-10), Machine(5e-6, 0, 4e-12, 2e-10)):
        spent = [machine.predict(step) for step in steps]
        found = costs.fit(steps, spent, nothing)
        assert [found.predict(step) for step in steps] == pytest.approx(spent)
    assert costs.fit(steps, spent, Machine(0, 2e-12, 0, 0)).per_flop >= 2e-12
    spent = [Machine(5e-5, -1e-13, 4e-12, 2e-10).predict(step) for step in steps]
    assert costs.fit(steps, spent, nothing).per_flop >= 0


def test_tables(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["costs", "--formulas", "--device", "cpu"])
    costs.main()
    printed = capsys.readouterr().out
    assert "| 10,788,929 " in printed
    assert "24 GB: the state of 1.5 billion parameters" in printed
    assert costs.named(Step(GPTConfig(), 64)) == "L=6 C=384 T=256 B=64, dropout"
    assert "lecture, n_layer=2" in costs.held_out(half=True)
