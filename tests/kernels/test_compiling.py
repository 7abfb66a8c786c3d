import shutil

import pytest
import torch
from helpers import OPTIONS
from torch import nn

from chargpt.batches import IGNORED
from chargpt.errors import UserError
from chargpt.generation import Sampling, generate
from chargpt.kernels.compiling import compile_model
from chargpt.model import GPTConfig
from chargpt.module import CharLM
from chargpt.optim import AdamWConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # in the compiler's own code
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("setting", "device", "steps"), [("auto", CPU, 10**6), ("auto", CUDA, 10), (False, CUDA, 10**6)]
)
def test_when_not(setting, device, steps):
    assert not compile_model(nn.Linear(2, 2), setting, device, steps)


@pytest.mark.parametrize("setting", ["yes", 2, None])
def test_other_settings(setting):
    with pytest.raises(UserError, match=f"compile must be auto, true or false; got {setting}"):
        compile_model(nn.Linear(2, 2), setting, CPU, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA can compile")
def test_where_something_is_missing(caplog):
    """PyTorch's own reason is shown; `auto` trains without."""
    with pytest.raises(UserError, match=r"compile=true fails: .*CUDA.*; compile=false trains without"):
        compile_model(nn.Linear(2, 2), True, CUDA, 1)
    assert not compile_model(nn.Linear(2, 2), "auto", CUDA, 10**6)
    assert "Not compiled" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_in_place():
    net, x = nn.Linear(2, 2), torch.randn(3, 2)
    expected = net(x)
    assert compile_model(net, True, CPU, 1)
    torch.testing.assert_close(net(x), expected)
    assert list(net.state_dict()) == ["weight", "bias"]


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
