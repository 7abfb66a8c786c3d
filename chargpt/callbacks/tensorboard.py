"""What the callbacks that write to TensorBoard share."""

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger


def tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    """The TensorBoard loggers of a run, which may have others beside them."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def verbatim(text: str) -> str:
    """Markdown that shows a text unchanged."""
    return "    " + text.replace("\n", "\n    ")
