"""Partitions between real processes: what can be served is served, and nothing is lost.

`EPISODES=20 target/venv/bin/python -m pytest tests/e2e/test_partitions.py` goes on longer."""

import os
import random
import time

import pytest

from nbd import Nbd
from partitions import Apart, healed
from service import Load, assert_clean

EPISODES = int(os.environ.get("EPISODES", "1"))
# M: manager, N: node manager, P: primary's server, R: mirror's server; what `Apart.cut` makes of it.
NOBODY_WAITS = ["N-R", "M-*", "M-P", "M-R", "M-N"]
SOMEBODY_DECIDES = ["P-R", "N-P", "P-*", "R-*", "P>R", "R>P", "N>P", "P>N", "P-M P-R", "P-N P-R", "P-N P-M"]
# Silence of 2 s, patience of 3 s, a second to be sure, and what a busy machine adds.
DECIDED_WITHIN = 15
BLOCK = 4096


@pytest.fixture(scope="module")
def used():
    names = ["manager", "node-a", "server-a-1", "server-a-2", "server-a-3"]
    flags = ("--zones", "a", "--servers-per-zone", "3", "--ssd-iops", "100000", "--remirror-delay", "60")
    service = Apart(names, *flags)
    try:
        service.start()
        volume = service.create(size=1)
        uris = service.attach(volume)["nbd_uris"]
        uri = next(u for u in uris if u.startswith("nbd+unix"))
        load = Load(uri, length=32 << 20, workers=4, rate=200)
        yield service, volume, uri
        assert_clean(load.stop())
        service.pliant("volume", "scrub", volume, "--wait")
        shown = service.in_sync(volume)
        assert shown["faults"] == [], shown
    finally:
        service.destroy()


def served_again(nbd, limit):
    """How long it took until requests were answered as usual, for a second."""
    begun = time.monotonic()
    well_since = None
    while time.monotonic() - begun < limit:
        asked = time.monotonic()
        at = (40 << 20) + random.randrange(256) * BLOCK
        nbd.write(at, asked.hex().encode().ljust(BLOCK))
        assert nbd.read(at, BLOCK).split()[0] == asked.hex().encode()
        now = time.monotonic()
        well_since = (well_since or asked) if now - asked < 0.5 else None
        if well_since and now - well_since > 1:
            return well_since - begun
    raise AssertionError(f"not served within {limit} s")


def one(used, shape, limit):
    service, volume, uri = used
    healed(service, volume)
    nbd = Nbd(uri, patience=2 * limit)
    try:
        served_again(nbd, 30)
        service.cut(volume, shape)
        return served_again(nbd, limit)
    finally:
        service.network.heal()
        nbd.close()


@pytest.mark.parametrize("shape", NOBODY_WAITS * EPISODES)
def test_nobody_waits(used, shape):
    assert one(used, shape, 10) < 1


@pytest.mark.parametrize("shape", SOMEBODY_DECIDES * EPISODES)
def test_somebody_decides(used, shape):
    one(used, shape, DECIDED_WITHIN)
