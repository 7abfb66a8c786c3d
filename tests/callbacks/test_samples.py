"""Text samples after each validation."""

import pytest
from helpers import STEPS, events, resume, signal_at, start

from chargpt.errors import Stopped
from chargpt.history import Sample, add_sample, read_samples


def test_a_prompt_of_unknown_characters_is_replaced_by_the_first_of_the_vocabulary(tiny, tmp_path):
    """Here, the line break. TensorBoard shows the text unchanged, as an indented block."""
    folder = tmp_path / "some" / "where"
    options = ["callbacks.text_samples.prompt='道'", f"callbacks.text_samples.dirpath={folder}"]
    start(tmp_path / "run", *tiny, *options)
    samples = read_samples(folder)
    assert [(sample.step, len(sample.text), sample.text[0]) for sample in samples] == [(3, 9, "\n"), (6, 9, "\n")]
    shown = events(tmp_path / "run").Tensors("sample/text_summary")[0].tensor_proto.string_val[0].decode()
    assert shown == "\n".join(f"    {line}" for line in samples[0].text.split("\n"))


def test_the_file_of_a_resumed_run_without_a_logger_is_that_of_an_uninterrupted_one(whole, tiny, tmp_path):
    with pytest.raises(Stopped):
        start(tmp_path, *tiny, *STEPS, *signal_at(7), "trainer.logger=false")
    add_sample(tmp_path, Sample(9, "written after the last save, before the run was killed"))
    resume(tmp_path, "+callbacks.stop=null")
    assert [sample.step for sample in read_samples(whole)] == [4, 8, 12]
    assert read_samples(tmp_path) == read_samples(whole)
