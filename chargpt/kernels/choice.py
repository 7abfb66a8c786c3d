"""Picks the precision, the library of matrix products and torch.compile, by rules on the kind of machine.

Timing them at the start could give ranks, jobs or a resumed run different answers. `python -m benchmarks.training`
shows all combinations, so that the rules can be checked on any machine.
"""

import functools
import importlib.util
import platform
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from chargpt import kernels
from chargpt.errors import UserError

LONG_RUN = 1000  # steps; compiling takes about a minute
forced_onednn: bool | None = None  # set by benchmarks, which compare


class Precision(NamedTuple):
    """A precision by Lightning's name, and the reason for it, for a line in the log."""

    name: str
    why: str


class CPU(NamedTuple):
    """The facts about a CPU that decide."""

    vendor: str = "other"
    units: frozenset[str] = frozenset()  # of those that torch.cpu.get_capabilities names


@functools.cache
def this_cpu() -> CPU:
    """The facts about this machine's CPU."""
    capabilities, cpuinfo = torch.cpu.get_capabilities(), Path("/proc/cpuinfo")  # a cloud's CPU may hide its name
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    names = f"{capabilities.get('cpu_name', '')} {platform.processor()} {text}"
    vendor = next((vendor for vendor in ("AMD", "Intel") if vendor in names), "other")
    return CPU(vendor, frozenset(name for name, value in capabilities.items() if value is True))


def machine_name(device: torch.device) -> str:
    """The GPU, or the CPU and the number of threads in use, to name beside a time."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    return f"{torch.cpu.get_capabilities().get('cpu_name', 'a CPU')}, {threads} thread{'s' * (threads > 1)}"


def best_precision(device: str, cpu: CPU | None = None, capability: tuple[int, int] | None = None) -> Precision:
    """The precision that trains fastest.

    Args:
        device: `cpu`, `cuda`, `mps` or another type of device.
        cpu, capability: of the CPU and the GPU; by default this machine's.
    """
    if device == "cuda":
        capability = capability or torch.cuda.get_device_capability()
        if capability >= (8, 0):  # the first that multiplies bf16 rather than imitating it
            return Precision("bf16-mixed", "this GPU multiplies bf16 matrices")
        if capability >= (7, 0):  # the first with tensor cores
            return Precision("16-mixed", "this GPU multiplies fp16 matrices, but not bf16")
        return Precision("32-true", "this GPU has no tensor cores")
    if device != "cpu":
        return Precision("32-true", f"no other is known to be faster on {device}")
    cpu = cpu or this_cpu()
    if "amx_bf16" in cpu.units:
        return Precision("bf16-mixed", "this CPU multiplies bf16 matrices in AMX units")
    if "avx512_bf16" not in cpu.units:
        return Precision("32-true", "this CPU has no units that are known to multiply bf16 matrices faster")
    if cpu.vendor == "AMD":
        return Precision("bf16-mixed", "AMD CPUs with AVX512-BF16 multiply bf16 matrices faster than fp32")
    return Precision("32-true", f"{cpu.vendor} CPUs with AVX512-BF16 but no AMX are faster in fp32")


def uses_onednn(dtype: torch.dtype, cpu: CPU | None = None) -> bool:
    """Whether oneDNN multiplies matrices of this type on a CPU (by default this one), not PyTorch's own choice.

    PyTorch uses oneDNN for bf16 anyway; calling it directly fuses the bias. In fp32 PyTorch takes MKL, which is fast on
    Intel's CPUs and needs twice the time on AMD's.
    """
    if kernels.onednn_linear is None or not torch.backends.mkldnn.is_available():
        return False
    if forced_onednn is not None:
        return forced_onednn
    cpu = cpu or this_cpu()
    return "avx512_f" in cpu.units and (dtype == torch.bfloat16 or (dtype == torch.float32 and cpu.vendor == "AMD"))


def compile_model(net: nn.Module, setting: str | bool, device: torch.device, steps: int) -> bool:
    """Have `torch.compile` compile `net` in place (the names in a checkpoint stay) at its first call, or not.

    Args:
        setting: true, false, or auto: on CUDA where Triton is installed, in long runs. (It makes a CPU slower.)
        steps: optimizer steps of the whole run.
    """
    if not isinstance(setting, bool) and setting != "auto":
        raise UserError(f"compile must be auto, true or false; got {setting}")
    if setting == "auto":
        setting = device.type == "cuda" and steps >= LONG_RUN and importlib.util.find_spec("triton") is not None
    if setting:
        net.compile(dynamic=False)
    return bool(setting)
