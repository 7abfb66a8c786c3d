"""The records in the folders of a sweep and its jobs."""

import pytest

from chargpt.errors import UserError
from chargpt.history import Point, add_losses
from chargpt.sweep.records import Job, Plan, read_jobs, read_plan, read_sweep, short_names, shown


def test_records_are_read_as_they_were_written(tmp_path):
    Plan(["seed"], 3, 1, ["seed=1,2,3"]).write(tmp_path)
    values = {"optimizer.lr": 0.1, "seed": 2**70, "optimizer": "muon", "compile": True, "data.val_path": None}
    jobs = [
        Job(tmp_path / "0_a", 0, values, finished=True),
        Job(tmp_path / "1_b", 1, {}, error="\x1b[2J ü"),
        Job(tmp_path / "2_c", 2, {"seed": 1}),
    ]
    for job in jobs:
        job.folder.mkdir()
        job.write()
    assert read_jobs(tmp_path) == jobs
    assert [job.state for job in jobs] == ["finished", "failed: \x1b[2J ü", "not finished"]
    assert read_plan(tmp_path) == Plan(["seed"], 3, 1, ["seed=1,2,3"])
    sweep = read_sweep(tmp_path)
    assert (sweep.finished, sweep.size, sweep.keys) == (1, 4, list(values))


def test_best_first(tmp_path):
    """Jobs without a validation come last, by number."""
    for number, losses in ((10, []), (2, []), (3, [3.0, 1.0, 2.0]), (4, [1.5])):
        job = Job(tmp_path / f"{number}_job", number, {"seed": number})
        job.folder.mkdir()
        job.write()
        for step, loss in enumerate(losses):
            add_losses(job.folder, Point(step, 1.0, 9.0, loss, float("nan") if step else 100.0))
    jobs = read_sweep(tmp_path).jobs
    assert [job.number for job in jobs] == [3, 4, 2, 10]
    assert (jobs[0].loss, jobs[0].best.step, jobs[0].speed) == (1.0, 1, 100.0)
    assert (jobs[3].loss, jobs[3].best, jobs[3].speed) == (float("inf"), None, None)


def test_values_that_lightning_takes_differently_are_other_jobs(tmp_path):
    identities = {
        Job(tmp_path, 0, {"trainer.limit_val_batches": value}).identity for value in (1, 1.0, True, "1", None)
    }
    assert len(identities) == 5
    assert Job(tmp_path, 0, {"a": 1, "b": 2}).identity == Job(tmp_path, 1, {"b": 2, "a": 1}, error="no").identity


DAMAGED = {
    "empty": b"",
    "half": b'{"number": 1, "val',
    "nested": b"[" * 100_000,
    "list": b"[]",
    "binary": b"\xff\xfe",
    "keys": b"{}",
    "types": b'{"number": "x", "values": [], "finished": 1, "error": null, "swept": 1, "jobs": {}, "arguments": 5}',
    "infinite": b'{"number": Infinity, "values": {}, "finished": true, "error": null}',
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_left_out(name, tmp_path):
    for n, content in enumerate(
        [b'{"number": 0, "values": {"a": [], "b": 1}, "finished": true, "error": null}', DAMAGED[name]]
    ):
        (tmp_path / f"{n}_job").mkdir()
        (tmp_path / f"{n}_job" / "job.json").write_bytes(content)
    (tmp_path / "sweep.json").write_bytes(DAMAGED[name])
    sweep = read_sweep(tmp_path)
    assert [job.values for job in sweep.jobs] == [{"b": 1}]
    assert (sweep.plan, sweep.size) == (None, 1)


def test_no_sweep(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"is not the folder of a sweep|no folder"):
            read_sweep(folder)


def test_names_and_values():
    assert short_names(["model.n_layer", "seed"]) == {"model.n_layer": "n_layer", "seed": "seed"}
    assert short_names(["model.block_size", "data.block_size"])["data.block_size"] == "data.block_size"
    assert [shown(value) for value in (True, None, 3, 0.00030000001, "a", 1e-10)] == [
        "true", "null", "3", "0.0003", "a", "1e-10",
    ]  # fmt: skip
    assert [len(shown(value)) for value in ("x" * 61, "x" * 62, 10**100)] == [61, 61, 61]
