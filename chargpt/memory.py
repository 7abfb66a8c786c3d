"""What fits into this machine's memory."""

import os

from chargpt.errors import UserError


def check_memory(needed: int, what: str, advice: str) -> None:
    """Refuse what would not fit: asked for it, a system may promise the memory, and end other programs to find it.

    Args:
        needed: bytes.
        what: needs them, in the plural.
        advice: what to do instead.

    Raises:
        UserError: the machine has less. Where that cannot be told (on Windows), anything fits.
    """
    if hasattr(os, "sysconf"):
        there_is = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > there_is:
            raise UserError(
                f"{what} need some {needed / 1e9:,.0f} GB of memory, and this machine has {there_is / 1e9:,.0f} GB:"
                f" {advice}"
            )
