"""What the command lines share."""

import sys

from chargpt.command_line import quoted, table


def test_commands_are_quoted_for_the_shell_of_the_system(monkeypatch):
    arguments = ["python", "train.py", "resume=a b", "x='1'"]
    assert quoted(arguments) == """python train.py 'resume=a b' 'x='"'"'1'"'"''"""
    monkeypatch.setattr(sys, "platform", "win32")
    assert quoted(arguments) == """python train.py "resume=a b" x='1'"""  # cmd.exe passes single quotes on


def test_a_table_keeps_to_its_lines():
    assert table(["n", "name"], [["1", "a\x1b[2J"], ["10", "b\nc"]]).splitlines() == [
        " n  name",
        r" 1  a\x1b[2J",
        r"10  b\nc",
    ]
