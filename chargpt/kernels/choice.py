"""Which precision and which library of matrix products are fast on a machine: by a rule on its kind.

A measurement at the start would differ between the processes of a run, the jobs of a sweep and an interrupted run and
its continuation. `python -m benchmarks.training` shows all combinations, so that the rule can be checked anywhere.
"""

import functools
import os
import platform
import re
from pathlib import Path
from typing import NamedTuple

import torch

from chargpt.kernels import private


class Precision(NamedTuple):
    """A precision as Lightning calls it, and why it is chosen, for a line in the log."""

    name: str
    why: str


def best_precision(device: str) -> Precision:
    """The precision that trains fastest.

    Args:
        device: `cpu`, `cuda`, `mps` or another type of device.
    """
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16-mixed", "this GPU multiplies bf16 matrices")
        if torch.cuda.get_device_capability() >= (7, 0):  # the first with tensor cores
            return Precision("16-mixed", "this GPU multiplies fp16 matrices, but not bf16")
        return Precision("32-true", "this GPU has no tensor cores")
    if device == "mps":
        # One report: bf16 1.3 times as fast as fp32 on an M5 Pro (pull request 852 of minimind). Older chips lack it.
        return Precision("32-true", "not all Apple GPUs have bf16; where they do, trainer.precision=bf16-mixed may pay")
    if device != "cpu":
        return Precision("32-true", f"no other is known to be faster on {device}")
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "DEFAULT"
    if not re.search("BF16|FP16|AMX|AVX10|ALL|DEFAULT", limit.upper()):
        return Precision("32-true", f"ONEDNN_MAX_CPU_ISA={limit} keeps oneDNN from multiplying bf16 matrices")
    units = torch.cpu.get_capabilities()
    if units.get("amx_bf16"):
        return Precision("bf16-mixed", "this CPU multiplies bf16 matrices in AMX units")
    if units.get("avx512_bf16") and cpu_vendor() == "AMD":
        return Precision("bf16-mixed", "AMD CPUs with AVX512-BF16 multiply bf16 matrices faster than fp32")
    if units.get("avx512_bf16"):
        return Precision("32-true", f"{cpu_vendor()} CPUs with AVX512-BF16 but no AMX are faster in fp32")
    return Precision("32-true", "this CPU has no units that are known to multiply bf16 matrices faster")


def uses_onednn(dtype: torch.dtype) -> bool:
    """Whether matrices of this type are multiplied by oneDNN on this CPU, instead of as PyTorch itself chooses.

    In bf16 oneDNN is PyTorch's choice, too; asked directly it adds the bias in the same pass. In fp32 PyTorch takes
    MKL, which is quick on Intel's CPUs and needs twice the time on AMD's.
    """
    if private.onednn_linear is None or not torch.backends.mkldnn.is_available():
        return False
    if forced_onednn is not None:
        return forced_onednn
    if dtype == torch.bfloat16:
        return private.onednn_has_bf16 is not None and private.onednn_has_bf16()
    return dtype == torch.float32 and cpu_vendor() == "AMD" and _has_avx512()


forced_onednn: bool | None = None  # benchmarks, which compare, set it


@functools.cache
def _has_avx512() -> bool:
    return bool(torch.cpu.get_capabilities().get("avx512_f"))


@functools.cache
def cpu_vendor() -> str:
    """`AMD`, `Intel` or another name of who made the CPU."""
    names = [str(torch.cpu.get_capabilities().get("cpu_name", "")), platform.processor()]
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names += [line for line in lines if line.startswith("vendor_id")][:1]
    return next((vendor for vendor in ("AMD", "Intel") for name in names if vendor in name), "other")
