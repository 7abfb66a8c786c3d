"""The configuration and the HParams of a run in TensorBoard."""

import pytest
from helpers import events, resume, signal_at, start
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from chargpt.errors import Stopped

TWO_LOGGERS = (
    "trainer.logger=null",  # Hydra does not replace a mapping by a list
    "trainer.logger=[{_target_: lightning.pytorch.loggers.CSVLogger, save_dir: '${run_dir}', name: csv, version: ''},"
    "{_target_: lightning.pytorch.loggers.TensorBoardLogger, save_dir: '${run_dir}', name: '', version: ''}]",
)


def hparams(folder):
    """The hyper-parameters that TensorBoard finds in a run's folder."""
    data = events(folder).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    return dict(HParamsPluginData.FromString(data).session_start_info.hparams)


def texts(folder, tag):
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events(folder).Tensors(tag)]


def test_a_run_has_its_configuration_and_its_hparams(tiny_run, text_file):
    [(step, config)] = texts(tiny_run, "config/text_summary")
    assert step == 0
    assert config.startswith(f"    # trained on {text_file}\n")
    assert "    seed: 1337\n" in config
    found = hparams(tiny_run)
    assert (found["model/n_embd"].number_value, found["precision"].string_value) == (16, "32-true")
    data = events(tiny_run).summary_metadata["_hparams_/experiment"].plugin_data.content
    metrics = HParamsPluginData.FromString(data).experiment.metric_infos
    assert [metric.name.tag for metric in metrics] == ["val/best_loss"]


def test_tensorboard_as_the_second_logger_gets_everything_also_when_resumed(tiny_run, tiny, tmp_path):
    with pytest.raises(Stopped):
        start(tmp_path, *tiny, *TWO_LOGGERS, *signal_at(4))
    resume(tmp_path, "+callbacks.stop=null", *TWO_LOGGERS)
    first, second = events(tiny_run).Tags(), events(tmp_path).Tags()
    for kind in ("scalars", "images", "tensors"):
        assert set(first[kind]) == set(second[kind])
    assert hparams(tmp_path).keys() == hparams(tiny_run).keys()
    assert (tmp_path / "csv" / "metrics.csv").is_file()
    assert [step for step, _ in texts(tmp_path, "sample/text_summary")] == [3, 6]
    assert [step for step, _ in texts(tmp_path, "config/text_summary")] == [0, 5]
