"""The configuration and the HParams of a run in TensorBoard."""

import shlex

from helpers import events, run_script, signal_at
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData


def hparams(folder):
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
    """By the printed command, with an option of the user's own."""
    (tmp_path / "my" / "experiment").mkdir(parents=True)
    (tmp_path / "my" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 5\n")
    options = "{_target_: lightning.pytorch.loggers.%s, save_dir: run, name: '%s', version: ''}"
    loggers = f"trainer.logger=[{options % ('CSVLogger', 'csv')}, {options % ('TensorBoardLogger', '')}]"
    own = ["--config-dir", f"{tmp_path}/my", "experiment=mine"]
    done = run_script("train.py", *own, *tiny, loggers, *signal_at(4), "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 143, done.stderr
    command = shlex.split(done.stderr.partition("To resume: ")[2])
    assert command[2:7] == [*own[:2], "resume=run", own[2], loggers]
    done = run_script("train.py", *command[2:7], "+callbacks.stop=null", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    first, second = events(tiny_run).Tags(), events(run).Tags()
    for kind in ("scalars", "images", "tensors"):
        assert set(first[kind]) == set(second[kind])
    assert hparams(run).keys() == hparams(tiny_run).keys()
    assert (run / "csv" / "metrics.csv").is_file()
    assert [step for step, _ in texts(run, "sample/text_summary")] == [3, 6]
    assert [step for step, _ in texts(run, "config/text_summary")] == [0, 5]
