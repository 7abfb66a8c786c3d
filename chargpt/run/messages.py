"""Lines on the terminal and in a run's log."""

import logging

from chargpt.errors import printable


class Printable(logging.Formatter):
    """What is logged, with control characters escaped: a name or a value of a stranger's could steer the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
