"""The loggers of a run, and how their curves continue when it resumes."""

import csv
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger


def continued(logger: Any, folder: str, first_step: int) -> Any:
    """The configuration of one or several loggers, with which TensorBoard drops earlier points from `first_step` on.

    Args:
        logger: true and null stand for TensorBoard, in the run's folder.
    """
    if isinstance(logger, list):
        return [continued(each, folder, first_step) for each in logger]
    if logger is None or logger is True:
        logger = {"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "save_dir": folder}
        logger |= {"name": "", "version": ""}
    if isinstance(logger, dict) and str(logger.get("_target_")).endswith(".TensorBoardLogger"):
        return logger | {"purge_step": first_step}
    return logger


def keep_rows(loggers: Iterable[Logger], step: int) -> None:
    """Keep the rows of CSV files up to a step: Lightning's CSVLogger would start the file again."""
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            rows, file = [], Path(logger.log_dir, "metrics.csv")
            if file.is_file():
                for row in csv.DictReader(file.read_text(encoding="utf-8", errors="replace").splitlines()):
                    with suppress(ValueError, TypeError):  # a row that was cut off
                        if int(row["step"]) <= step:
                            rows.append({key: value for key, value in row.items() if key and value})
            logger.experiment.metrics = rows
            logger.save()
