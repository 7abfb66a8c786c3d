"""The rules, on invented machines."""

import pytest
import torch
from helpers import OPTIONS
from torch import nn

from chargpt import kernels
from chargpt.batches import IGNORED
from chargpt.errors import UserError
from chargpt.generation import Sampling, generate
from chargpt.kernels import choice
from chargpt.kernels.choice import CPU, best_precision, compile_model, uses_onednn
from chargpt.model import GPTConfig
from chargpt.module import CharLM
from chargpt.optim import AdamWConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # in the compiler's own code
needs_onednn = pytest.mark.skipif(kernels.onednn_linear is None, reason="this build of PyTorch has no oneDNN")
AMX = frozenset({"amx_bf16", "avx512_bf16", "avx512_f"})
BF16 = frozenset({"avx512_bf16", "avx512_f"})


@pytest.mark.parametrize(
    ("device", "facts", "precision", "why"),
    [
        ("cpu", CPU("AMD", BF16), "bf16-mixed", "AMD"),
        ("cpu", CPU("Intel", AMX), "bf16-mixed", "AMX"),
        ("cpu", CPU("Intel", BF16), "32-true", "Intel CPUs"),
        ("cpu", CPU(), "32-true", "no units"),
        ("cuda", (9, 0), "bf16-mixed", "GPU"),
        ("cuda", (7, 5), "16-mixed", "GPU"),  # it only imitates bf16
        ("cuda", (6, 1), "32-true", "GPU"),
        ("mps", None, "32-true", "on mps"),
    ],
)
def test_precision(device, facts, precision, why):
    found = best_precision(device, *([facts] if device == "cpu" else [CPU("AMD", BF16), facts]))
    assert found.name == precision
    assert why in found.why


@needs_onednn
@pytest.mark.parametrize(
    ("cpu", "fp32", "bf16"),
    [(CPU("AMD", BF16), True, True), (CPU("AMD"), False, False), (CPU("Intel", AMX), False, True)],
)
def test_which_products_onednn_takes(cpu, fp32, bf16, monkeypatch):
    assert uses_onednn(torch.float32, cpu) is fp32
    assert uses_onednn(torch.bfloat16, cpu) is bf16
    assert not uses_onednn(torch.float64, cpu)
    for forced in (False, True):
        monkeypatch.setattr(choice, "forced_onednn", forced)
        assert uses_onednn(torch.float32, cpu) is uses_onednn(torch.bfloat16, cpu) is forced
    monkeypatch.setattr(kernels, "onednn_linear", None)  # as in a build of PyTorch without it
    assert not uses_onednn(torch.bfloat16, cpu)


@pytest.mark.parametrize(
    ("setting", "device", "steps", "triton", "expected"),
    [
        (True, "cpu", 1, None, True),
        (False, "cuda", 10**6, "here", False),
        ("auto", "cpu", 10**6, "here", False),
        ("auto", "cuda", 10, "here", False),
        ("auto", "cuda", 10**6, None, False),
        ("auto", "cuda", 10**6, "here", True),
    ],
)
def test_when_a_model_is_compiled(setting, device, steps, triton, expected, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: triton)
    net = nn.Linear(2, 2)
    assert compile_model(net, setting, torch.device(device), steps) is expected
    assert (net._compiled_call_impl is not None) is expected


def test_another_setting_of_compile():
    with pytest.raises(UserError, match="compile must be auto, true or false; got yes"):
        compile_model(nn.Linear(2, 2), "yes", torch.device("cpu"), 1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_compiled_model_learns_the_same(options, monkeypatch):
    """Training is compiled once, validation once more; sampling, whose shapes change, is not."""
    monkeypatch.setattr("chargpt.module.CPU_PART", 16)
    config = GPTConfig(block_size=8, n_layer=1, n_head=2, n_embd=8, dropout=0.0, **options)
    torch.manual_seed(0)
    module = CharLM(config, AdamWConfig(), "abc")
    batch = torch.randint(3, (4, 8)), torch.randint(3, (4, 8))
    plain = torch.autograd.grad(module.training_loss(*batch), list(module.net.parameters()))
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    module.net.compile(backend=backend)
    compiled = torch.autograd.grad(module.training_loss(*batch), list(module.net.parameters()))
    torch.testing.assert_close(plain, compiled)
    assert len(graphs) == 1
    module.eval()
    with torch.inference_mode():
        for targets in (batch[1], batch[1].clone().fill_(IGNORED)):
            module.validation_step((batch[0], targets), 0)
    list(generate(module.net, batch[0][:1], Sampling(max_new_tokens=12)))
    assert len(graphs) == 2
