"""The one error that a person can mend."""


class UserError(ValueError):
    """Something in the input is wrong; the message says what, and what would be right.

    `train.py` and `sample.py` show it as one line, without a traceback, and exit with status 2.
    """
