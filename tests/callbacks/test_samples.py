import pytest
import torch
from helpers import STEPS, assert_same, events, resume, signal_at, start, state

from chargpt.history import Sample, add_sample, read_samples


def test_text_samples_leave_training_alone(tiny, tmp_path):
    """They draw random numbers of their own."""
    for name, length in (("short", 1), ("long", 30)):
        start(tmp_path / name, *tiny, f"callbacks.text_samples.length={length}")
    assert_same(state(tmp_path / "short")["state_dict"], state(tmp_path / "long")["state_dict"])


def test_a_folder_of_their_own(tiny, tmp_path):
    start(tmp_path / "run", *tiny, f"callbacks.text_samples.dirpath={tmp_path}/some/where")
    assert [sample.step for sample in read_samples(tmp_path / "some" / "where")] == [3, 6]


def test_a_prompt_without_known_characters(tiny, tmp_path):
    """The first character of the vocabulary, here the line break, stands in."""
    start(tmp_path, *tiny, "callbacks.text_samples.prompt='道'")
    for event in events(tmp_path).Tensors("sample/text_summary"):
        text = event.tensor_proto.string_val[0].decode()
        assert len(text.replace("\n    ", "\n")) == len("    ") + 1 + 8
        assert text.startswith("    \n")


def test_samples_are_kept_in_a_file_whatever_the_logger(tiny, tmp_path):
    """A resumed run has those of the run that was never interrupted."""
    start(tmp_path / "whole", *tiny, *STEPS)
    start(tmp_path / "bare", *tiny, *STEPS, "trainer.logger=false")
    with pytest.raises(SystemExit):
        start(tmp_path / "cut", *tiny, *STEPS, *signal_at(7))
    add_sample(tmp_path / "cut", Sample(9, "written after the last save, before the run was killed"))
    resume(tmp_path / "cut", "+callbacks.stop=null")
    samples = read_samples(tmp_path / "whole")
    assert [sample.step for sample in samples] == [4, 8, 12]
    assert samples == read_samples(tmp_path / "cut") == read_samples(tmp_path / "bare")


def test_samples_in_the_middle_of_training_know_no_dropout(tiny, tmp_path, monkeypatch):
    modes = []
    from chargpt.callbacks import samples

    real = samples.generate
    monkeypatch.setattr(samples, "generate", lambda net, *rest: modes.append(net.training) or real(net, *rest))
    start(tmp_path, *tiny)
    assert modes == [False, False]
    assert torch.is_grad_enabled()
