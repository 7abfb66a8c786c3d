import pytest
from helpers import STEPS, start


@pytest.fixture(scope="session")
def whole(tiny, tmp_path_factory):
    """The folder of a run of 12 steps, with a validation every 4."""
    folder = tmp_path_factory.mktemp("whole")
    start(folder, *tiny, *STEPS)
    return folder
