import shutil

import pytest
import torch
from helpers import OPTIONS
from torch import nn

from chargpt.errors import UserError
from chargpt.generation import Sampling, generate
from chargpt.kernels import compiling
from chargpt.kernels.compiling import PAYS_AFTER, compile_model
from chargpt.model import GPTConfig
from chargpt.module import CharLM
from chargpt.optim import AdamWConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # in the compiler's own code
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def cuda(monkeypatch):
    """A machine with a GPU and all that compiling needs, as far as is asked."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(shutil, "which", lambda name: name)


@pytest.mark.parametrize(
    ("setting", "device", "steps", "expected"),
    [
        ("auto", CPU, 10**6, False),
        ("auto", CUDA, PAYS_AFTER - 1, False),
        ("auto", CUDA, PAYS_AFTER, True),
        (True, CUDA, 1, True),
        (True, CPU, 1, True),
        (False, CUDA, 10**6, False),
    ],
)
def test_when(cuda, setting, device, steps, expected):
    net = nn.Linear(2, 2)
    assert compile_model(net, setting, device, steps) is expected
    assert (net._compiled_call_impl is not None) is expected
    assert list(net.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_no_compiler(cuda, monkeypatch, caplog, device):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"compile=true cannot be done: there is no C.* compiler .*; compile=false"):
        compile_model(nn.Linear(2, 2), True, device, 10**6)
    assert not compile_model(nn.Linear(2, 2), "auto", device, 10**6)
    assert ("there is no C compiler" in caplog.text) == (device == CUDA)


def test_no_triton(cuda, monkeypatch):
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="there is no Triton"):
        compile_model(nn.Linear(2, 2), True, CUDA, 1)


def test_an_old_gpu(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    with pytest.raises(UserError, match="a GPU is older than"):
        compile_model(nn.Linear(2, 2), True, CUDA, 1)


@pytest.mark.parametrize("setting", ["yes", 2, None])
def test_other_settings(setting):
    with pytest.raises(UserError, match=f"compile must be auto, true or false; got {setting}"):
        compile_model(nn.Linear(2, 2), setting, CPU, 1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_compiled_model_learns_the_same_and_only_training_is_compiled(options, monkeypatch):
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
    module.validation_step((batch[0][:, :5], batch[1][:, :5]), 0)
    with torch.compiler.set_stance("force_eager"):
        list(generate(module.net, batch[0][:1], Sampling(max_new_tokens=12)))
    assert len(graphs) == 1
