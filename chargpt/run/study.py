"""The study of a search, in a file that may come from a stranger."""

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from chargpt.errors import UserError


def check_study(storage: str, searched: Iterable[str]) -> None:
    """Refuse a study in a file with parameters that are not searched: a trial that waits in it would become an override
    of any kind, one that runs code among them.

    Args:
        storage: as Optuna takes it; only SQLite's files are looked into.

    Raises:
        UserError: it has some, or cannot be read.
    """
    file = Path(storage.removeprefix("sqlite:///"))
    if not storage.startswith("sqlite:///") or not file.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as study:
            tables = {str(name).lower() for (name,) in study.execute("select name from sqlite_master")}
            odd = study.execute("select name from sqlite_master where type in ('view', 'trigger')").fetchone()
            params = study.execute("select distinct param_name from trial_params") if "trial_params" in tables else ()
            others = {str(name) for (name,) in params} - set(searched)
    except sqlite3.Error as error:
        raise UserError(f"{file} is not a study of Optuna's: {error}") from error
    if odd:  # what it answers now need not be what it answers next
        raise UserError(f"{file} is not a study of Optuna's: it has more than tables")
    if others:
        raise UserError(f"{file} is a study of another search: {', '.join(sorted(others))[:200]}")
