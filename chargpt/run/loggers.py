"""Where a run's curves are recorded, and how they go on."""

import csv
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import loggers as lightning
from lightning.pytorch.loggers import CSVLogger, Logger


class TensorBoardLogger(lightning.TensorBoardLogger):
    """Lightning's, in the folder of the very name that it is given: that one would put a variable's value for `$HOME`
    in it, and the run's folder may be a stranger's."""

    @property
    def log_dir(self) -> str:
        version = self.version if isinstance(self.version, str) else f"version_{self.version}"
        return os.path.join(self.root_dir, version, self.sub_dir or "")


def continued(logger: Any, folder: str, first_step: int) -> Any:
    """A logger's configuration, or a list of them, by which TensorBoard shows no earlier points from that step on.

    Args:
        logger: `true` and null stand for Lightning's choice, which is TensorBoard; ours writes into the folder.
    """
    if isinstance(logger, list):
        return [continued(each, folder, first_step) for each in logger]
    if logger is None or logger is True:
        logger = {"_target_": f"{__name__}.TensorBoardLogger", "save_dir": folder, "name": "", "version": ""}
    if isinstance(logger, dict) and str(logger.get("_target_")).endswith(".TensorBoardLogger"):
        return logger | {"purge_step": first_step}
    return logger


def keep_rows(loggers: Iterable[Logger], step: int) -> None:
    """Keep the rows of CSV files up to a step: Lightning's logger would begin them anew."""
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            rows, file = [], Path(logger.log_dir, "metrics.csv")
            before = file.with_name("metrics.before.csv")  # there after a crash in these lines
            if file.is_file() and not before.is_file():
                file.rename(before)
            if before.is_file():
                with before.open(encoding="utf-8", errors="replace", newline="") as stream:
                    rows = [row for row in csv.DictReader(stream) if _step_of(row) <= step]
            logger.experiment.metrics = [{key: value for key, value in row.items() if key and value} for row in rows]
            logger.save()
            before.unlink(missing_ok=True)


def _step_of(row: dict[str, Any]) -> float:
    """The step of a row; of one that was cut off by a crash, none that is ever reached."""
    return int(row["step"]) if re.fullmatch(r"\d{1,18}", str(row.get("step"))) else math.inf


def flush(loggers: Iterable[Logger]) -> None:
    """Have what was logged so far written to disk."""
    for logger in loggers:
        if isinstance(logger, lightning.TensorBoardLogger):
            logger.experiment.flush()
        elif isinstance(logger, CSVLogger):
            logger.save()
