"""The rules, on machines that are made up."""

import platform

import pytest
import torch

from chargpt.kernels import choice, private
from chargpt.kernels.choice import best_precision, cpu_vendor, uses_onednn

AMX = {"amx_bf16": True, "avx512_bf16": True, "avx512_f": True}
BF16 = {"amx_bf16": False, "avx512_bf16": True, "avx512_f": True}
AVX512 = {"amx_bf16": False, "avx512_bf16": False, "avx512_f": True}
OLD = {"amx_bf16": False, "avx512_bf16": False, "avx512_f": False}


def forget():
    cpu_vendor.cache_clear()
    choice._has_avx512.cache_clear()


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Makes this machine look like another: what PyTorch, Python and Linux say of its CPU."""

    def make(vendor="", units=None, processor="", cpuinfo=""):
        forget()
        (tmp_path / "cpuinfo").write_text(cpuinfo)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": vendor} | (units or {}))
        monkeypatch.setattr(platform, "processor", lambda: processor)
        monkeypatch.setattr(choice, "Path", lambda path: tmp_path / "cpuinfo")

    monkeypatch.setattr(choice, "forced_onednn", None)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(private, "onednn_linear", lambda *_: None)
    monkeypatch.setattr(private, "onednn_has_bf16", lambda: True)
    yield make
    forget()


@pytest.mark.parametrize(
    ("vendor", "units", "precision", "fp32_by_onednn", "why"),
    [
        ("AMD EPYC 9965", BF16, "bf16-mixed", True, "AMD"),
        ("AMD EPYC 7763", OLD, "32-true", False, "no units"),
        ("AMD EPYC 9124", AVX512, "32-true", True, "no units"),
        ("Intel Xeon 6980P", AMX, "bf16-mixed", False, "AMX"),
        ("Intel Xeon 8380H", BF16, "32-true", False, "Intel CPUs"),
        ("Intel Core i7-8650U", OLD, "32-true", False, "no units"),
        ("another", BF16, "32-true", False, "other CPUs"),
        ("Apple M3", {}, "32-true", False, "no units"),
        ("Neoverse-V2", {}, "32-true", False, "no units"),
    ],
)
def test_cpus(machine, vendor, units, precision, fp32_by_onednn, why):
    machine(vendor, units)
    assert best_precision("cpu").name == precision
    assert why in best_precision("cpu").why
    assert uses_onednn(torch.float32) is fp32_by_onednn
    assert uses_onednn(torch.bfloat16)
    assert not uses_onednn(torch.float64)


@pytest.mark.parametrize(("limit", "precision"), [("AVX2", "32-true"), ("AVX512_CORE_BF16", "bf16-mixed")])
def test_a_limit_on_onednn(machine, monkeypatch, limit, precision):
    machine("AMD EPYC 9965", BF16)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert best_precision("cpu").name == precision


def test_bf16_where_onednn_does_not_have_it(machine, monkeypatch):
    machine("AMD EPYC 7763", OLD)
    monkeypatch.setattr(private, "onednn_has_bf16", lambda: False)
    assert not uses_onednn(torch.bfloat16)
    monkeypatch.setattr(private, "onednn_has_bf16", None)
    assert not uses_onednn(torch.bfloat16)


@pytest.mark.parametrize("forced", [None, True])
def test_no_onednn_on_a_build_without_it(machine, monkeypatch, forced):
    machine("AMD EPYC 9965", BF16)
    monkeypatch.setattr(choice, "forced_onednn", forced)
    assert uses_onednn(torch.float32)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not uses_onednn(torch.float32)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(private, "onednn_linear", None)
    assert not uses_onednn(torch.float32)


@pytest.mark.parametrize(("vendor", "units"), [("AMD", BF16), ("Intel", AMX)])
@pytest.mark.parametrize("forced", [True, False])
def test_benchmarks_force_it(machine, monkeypatch, vendor, units, forced):
    machine(vendor, units)
    monkeypatch.setattr(choice, "forced_onednn", forced)
    assert uses_onednn(torch.float32) is uses_onednn(torch.bfloat16) is forced


@pytest.mark.parametrize(
    ("bf16", "capability", "expected"),
    [(True, (8, 0), "bf16-mixed"), (False, (7, 5), "16-mixed"), (False, (6, 1), "32-true")],
)
def test_gpus(machine, monkeypatch, bf16, capability, expected):
    """A GPU that only imitates bf16 does not have it; the CPU beside it does not matter."""
    machine("AMD", BF16)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 and not including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert best_precision("cuda").name == expected
    assert "GPU" in best_precision("cuda").why


@pytest.mark.parametrize(("device", "why"), [("mps", "Apple GPUs"), ("xla", "on xla")])
def test_other_devices(machine, device, why):
    machine("AMD", BF16)
    assert best_precision(device).name == "32-true"
    assert why in best_precision(device).why


@pytest.mark.parametrize(
    ("facts", "vendor"),
    [
        ({"vendor": "AMD EPYC"}, "AMD"),
        ({"vendor": "Intel(R) Xeon(R)"}, "Intel"),
        ({"processor": "Intel64 Family 6, GenuineIntel"}, "Intel"),
        ({"cpuinfo": "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: a cloud's CPU\n"}, "AMD"),
        ({"cpuinfo": "processor\t: 0\nvendor_id\t: GenuineIntel\n"}, "Intel"),
        ({"vendor": "Neoverse-N1", "processor": "aarch64", "cpuinfo": "CPU implementer\t: 0x41\n"}, "other"),
        ({}, "other"),
    ],
)
def test_who_made_the_cpu(machine, facts, vendor):
    machine(**facts)
    assert cpu_vendor() == vendor
