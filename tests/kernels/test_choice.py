"""The rules, on invented machines."""

import pytest
import torch

from chargpt.kernels import choice, private
from chargpt.kernels.choice import CPU, best_precision, this_cpu, uses_onednn

needs_onednn = pytest.mark.skipif(private.onednn_linear is None, reason="this build of PyTorch has no oneDNN")
AMX = frozenset({"amx_bf16", "avx512_bf16", "avx512_f"})
BF16 = frozenset({"avx512_bf16", "avx512_f"})
AVX512 = frozenset({"avx512_f"})


@pytest.mark.parametrize(
    ("cpu", "precision", "why"),
    [
        (CPU("AMD", BF16), "bf16-mixed", "AMD"),
        (CPU("AMD", AVX512), "32-true", "no units"),
        (CPU("Intel", AMX), "bf16-mixed", "AMX"),
        (CPU("Intel", BF16), "32-true", "Intel CPUs"),
        (CPU("other", BF16), "32-true", "other CPUs"),
        (CPU(), "32-true", "no units"),
        (CPU("AMD", BF16, "AVX2"), "32-true", "ONEDNN_MAX_CPU_ISA=AVX2"),
        (CPU("AMD", BF16, "AVX512_CORE_BF16"), "bf16-mixed", "AMD"),
    ],
)
def test_precision_on_a_cpu(cpu, precision, why):
    found = best_precision("cpu", cpu)
    assert found.name == precision
    assert why in found.why


@pytest.mark.parametrize(
    ("device", "capability", "precision", "why"),
    [
        ("cuda", (9, 0), "bf16-mixed", "GPU"),
        ("cuda", (7, 5), "16-mixed", "GPU"),  # it only imitates bf16
        ("cuda", (6, 1), "32-true", "GPU"),
        ("mps", None, "32-true", "Apple GPUs"),
        ("xla", None, "32-true", "on xla"),
    ],
)
def test_precision_on_other_devices(device, capability, precision, why):
    found = best_precision(device, CPU("AMD", BF16), capability)
    assert found.name == precision
    assert why in found.why


@needs_onednn
@pytest.mark.parametrize(
    ("cpu", "expected"),
    [(CPU("AMD", BF16), True), (CPU("AMD", AVX512), True), (CPU("AMD"), False), (CPU("Intel", AMX), False)],
)
def test_onednn_in_fp32(cpu, expected, monkeypatch):
    assert uses_onednn(torch.float32, cpu) is expected
    assert not uses_onednn(torch.float64, cpu)
    for forced in (True, False):
        monkeypatch.setattr(choice, "forced_onednn", forced)
        assert uses_onednn(torch.float32, cpu) is uses_onednn(torch.bfloat16, cpu) is forced


@needs_onednn
def test_onednn_in_bf16_where_it_has_it(monkeypatch):
    for has, expected in ((lambda: True, True), (lambda: False, False), (None, False)):
        monkeypatch.setattr(private, "onednn_has_bf16", has)
        assert uses_onednn(torch.bfloat16, CPU("AMD", BF16)) is expected


def test_no_onednn_in_a_build_without_it(monkeypatch):
    monkeypatch.setattr(choice, "forced_onednn", True)
    monkeypatch.setattr(private, "onednn_linear", None)
    assert not uses_onednn(torch.float32, CPU("AMD", BF16))


def test_this_machine_is_what_pytorch_knows_of_it():
    cpu = this_cpu()
    assert cpu.vendor in ("AMD", "Intel", "other")
    assert ("avx512_f" in cpu.units) is bool(torch.cpu.get_capabilities().get("avx512_f"))
    assert best_precision("cpu") == best_precision("cpu", cpu)
