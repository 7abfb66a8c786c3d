"""Text samples after each validation."""

import pytest
from helpers import STEPS, assert_same, events, resume, signal_at, start, state

from chargpt.errors import Stopped
from chargpt.history import Sample, add_sample, read_samples


def test_training_draws_the_same_numbers_whatever_the_samples(tiny, tmp_path):
    for name, length in (("short", 1), ("long", 30)):
        start(tmp_path / name, *tiny, f"callbacks.text_samples.length={length}")
    assert_same(state(tmp_path / "short")["state_dict"], state(tmp_path / "long")["state_dict"])


def test_a_prompt_of_unknown_characters_is_replaced_by_the_first_of_the_vocabulary(tiny, tmp_path):
    """Here, the line break. TensorBoard shows the text unchanged, as an indented block."""
    folder = tmp_path / "some" / "where"
    options = ["callbacks.text_samples.prompt='道'", f"callbacks.text_samples.dirpath={folder}"]
    start(tmp_path / "run", *tiny, *options)
    samples = read_samples(folder)
    assert [(sample.step, len(sample.text), sample.text[0]) for sample in samples] == [(3, 9, "\n"), (6, 9, "\n")]
    shown = events(tmp_path / "run").Tensors("sample/text_summary")[0].tensor_proto.string_val[0].decode()
    assert shown == "\n".join(f"    {line}" for line in samples[0].text.split("\n"))


def test_the_file_of_a_resumed_run_is_that_of_an_uninterrupted_one(tiny, tmp_path):
    """Whatever the logger."""
    start(tmp_path / "whole", *tiny, *STEPS)
    start(tmp_path / "bare", *tiny, *STEPS, "trainer.logger=false")
    with pytest.raises(Stopped):
        start(tmp_path / "cut", *tiny, *STEPS, *signal_at(7))
    add_sample(tmp_path / "cut", Sample(9, "written after the last save, before the run was killed"))
    resume(tmp_path / "cut", "+callbacks.stop=null")
    samples = read_samples(tmp_path / "whole")
    assert [sample.step for sample in samples] == [4, 8, 12]
    assert samples == read_samples(tmp_path / "cut") == read_samples(tmp_path / "bare")
