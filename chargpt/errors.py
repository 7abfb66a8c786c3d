"""The errors that people are told of in one line."""


class UserError(ValueError):
    """Something in the input is wrong; the message says what, and what would be right.

    `train.py` and `sample.py` show it as one line, without a traceback, and exit with status 2.
    """


class NonFiniteError(RuntimeError):
    """The loss or the weights are no longer finite: going on, or saving, would be of no use."""
