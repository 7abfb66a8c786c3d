"""What a run wrote: its text samples, in `samples.jsonl` in its folder."""

import json
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from chargpt.files import write

FILE = "samples.jsonl"


class Sample(NamedTuple):
    """A text that a model wrote, prompt included, after so many optimizer steps."""

    step: int
    text: str


def read_samples(run: Path) -> list[Sample]:
    """The samples of a run, without damaged lines; none if there is no such file."""
    samples: list[Sample] = []
    with suppress(OSError):
        for line in (run / FILE).read_bytes().splitlines():
            with suppress(ValueError, TypeError, LookupError, AttributeError, OverflowError):
                found = json.loads(line)
                found["text"].encode()  # surrogates are no text
                samples.append(Sample(int(found["step"]), found["text"]))
    return samples


def append(run: Path, sample: Sample) -> None:
    """Add a sample to those of a run."""
    with (run / FILE).open("ab") as file:
        file.write(_line(sample))


def keep_until(run: Path, step: int) -> None:
    """Drop the samples after a step, from where a run resumes."""
    if (run / FILE).exists():
        write(run / FILE, b"".join(_line(sample) for sample in read_samples(run) if sample.step <= step))


def _line(sample: Sample) -> bytes:
    return json.dumps(sample._asdict()).encode() + b"\n"
