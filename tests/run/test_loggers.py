"""How the curves of a run continue when it resumes."""

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from chargpt.run.loggers import continued, keep_rows

TENSORBOARD = "lightning.pytorch.loggers.TensorBoardLogger"


def test_tensorboard_in_the_runs_folder_is_the_default():
    expected = {"_target_": TENSORBOARD, "save_dir": "run", "name": "", "version": "", "purge_step": 7}
    assert continued(None, "run", 7) == continued(True, "run", 7) == expected
    assert continued(False, "run", 7) is False


def test_of_several_loggers_each_tensorboard_drops_later_points():
    csv, board = {"_target_": "lightning.pytorch.loggers.CSVLogger"}, {"_target_": TENSORBOARD, "save_dir": "x"}
    assert continued([csv, board, board], "run", 7) == [csv, *[board | {"purge_step": 7}] * 2]


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_rows_of_a_csv_file_are_kept_up_to_a_step(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    file = tmp_path / "metrics.csv"
    file.write_text("step,loss,lr\n1,3.5,\n2,3.0,0.1\n3,2.5,\n4,")
    keep_rows([TensorBoardLogger(tmp_path / "other"), logger], 2)
    assert file.read_text().splitlines() == ["loss,lr,step", "3.5,,1", "3.0,0.1,2"]
    logger.log_metrics({"loss": 2.0}, 3)
    logger.save()
    assert file.read_text().splitlines()[-1] == "2.0,,3"
