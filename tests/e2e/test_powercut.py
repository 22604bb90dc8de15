"""The power of a whole service fails under load; nothing acknowledged is lost. More of it: `make powercut`."""

import os
import pathlib
import shutil
import tempfile

import pytest

from powercut import Recording, play_back
from service import ROOT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="recording a drive mounts a file, which needs root")


@pytest.fixture(scope="module")
def recording():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="powercut-", dir=ROOT / "target"))
    try:
        one = Recording(folder, seed=20, seconds=4)
        print(one)
        yield one
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_what_was_acknowledged_survives_a_power_cut(recording):
    assert play_back(recording, 20) == []


def test_a_drive_that_forgets_what_it_flushed_is_found_out(recording):
    """The check can fail: the same drives, without what their last flush promised."""
    assert play_back(recording, 3, forgets=1) != []
