"""What a run wrote: its text samples, in a file of its folder."""

import json
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from chargpt.files import LARGEST, lines_of, write_whole
from chargpt.settings import MOST_STEPS

FILE = "samples.jsonl"
LONGEST = 20_000  # characters of a sample
LONGEST_LINE = 12 * LONGEST + 100  # bytes: escapes of two surrogates for each
MOST_LINES = 1_000_000


class Sample(NamedTuple):
    """A text that a model wrote.

    Attributes:
        step: optimizer steps taken.
        text: the prompt included.
    """

    step: int
    text: str


def read_samples(run: Path) -> list[Sample]:
    """The samples of a run; none where there is no such file. A line that is damaged is left out."""
    samples: list[Sample] = []
    for line in lines_of(run / FILE, MOST_LINES, LONGEST_LINE):
        with suppress(ValueError, TypeError, LookupError, AttributeError, RecursionError):
            found = json.loads(line)
            sample = Sample(found["step"], found["text"])
            sample.text.encode()  # surrogates are no text
            if type(sample.step) is int and 0 <= sample.step < MOST_STEPS and len(sample.text) <= LONGEST:
                samples.append(sample)
    return samples


def append(run: Path, sample: Sample) -> None:
    """Add a sample to those of a run."""
    with (run / FILE).open("ab") as file:
        file.write(_line(sample))


def keep_until(run: Path, step: int) -> None:
    """Drop the samples after a step, from where a run goes on."""
    if (run / FILE).exists() and (run / FILE).stat().st_size <= LARGEST:
        write_whole(run / FILE, b"".join(_line(sample) for sample in read_samples(run) if sample.step <= step))


def _line(sample: Sample) -> bytes:
    return json.dumps(sample._asdict()).encode() + b"\n"
