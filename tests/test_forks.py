"""A script in a fork does what it does in a process that Python has just started."""

import sys
from subprocess import TimeoutExpired

import pytest
from helpers import ROOT, run_fresh, run_script, signal_at

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")


@pytest.mark.parametrize("arguments", [["--cfg", "job", "run_dir=x"], ["model.n_layr=3"]], ids=" ".join)
def test_what_is_said(arguments):
    fresh, forked = run_fresh("train.py", *arguments), run_script("train.py", *arguments)
    assert (forked.returncode, forked.stdout, forked.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)
    assert fresh.stdout + fresh.stderr


@pytest.mark.parametrize(("signum", "status"), [(9, -9), (15, 143)])
def test_the_status(signum, status, tiny, tmp_path):
    where = {"cwd": tmp_path, "env": {"PYTHONPATH": str(ROOT / "tests")}}
    done = run_script("train.py", *tiny, *signal_at(2, signum=signum), "hydra.run.dir=run", **where)
    assert done.returncode == status, done.stderr
    assert (tmp_path / "run" / "train.log").exists()
    assert "Traceback" not in done.stderr


def test_what_it_leaves_behind_is_noticed(tmp_path):
    (tmp_path / "script.py").write_text("import subprocess; subprocess.Popen(['sleep', '60'])")
    with pytest.raises(AssertionError, match="left processes behind"):
        run_script(str(tmp_path / "script.py"))


def test_it_is_not_waited_for_without_end(tiny, tmp_path):
    with pytest.raises(TimeoutExpired):
        run_script("train.py", *tiny, "trainer.max_steps=1000000", f"hydra.run.dir={tmp_path}/run", timeout=2)
