"""Drives that are full: writes that need space wait, nothing fails, and they go on when there is space."""

import re
import threading
import time

import pytest

from nbd import Nbd
from roles import Roles
from service import wait_for

MIB = 1 << 20
VOLUME = 1 << 30
CHUNK = 256 << 10
WRITERS = 4
SHARE = VOLUME // WRITERS
# Longer than it takes the manager and the node manager to give up on a server that is silent.
PATIENCE = 15


def smaller(name, text):
    """SSD drives that may promise 1 GiB, of which journal and tables leave less for data."""
    if not name.startswith("server"):
        return text
    ssd, hdd = text.split('name = "hdd"')
    ssd = re.sub(r"size_gib = \d+", "size_gib = 1", ssd)
    return re.sub(r"journal_mib = \d+", "journal_mib = 96", ssd) + 'name = "hdd"' + hdd


@pytest.fixture(scope="module")
def small():
    flags = ("--zones", "a", "--servers-per-zone", "2", "--ssd-gib", "1", "--hdd-gib", "1", "--remirror-delay", "60")
    one = Roles(*flags, change=smaller).start()
    yield one
    one.destroy()


def content(offset, version):
    return (b"%15d %15d " % (offset, version)) * (CHUNK // 32)


class Filler(threading.Thread):
    """Writes its share of the volume, from its beginning to its end."""

    def __init__(self, uri, number):
        super().__init__(daemon=True)
        self.nbd = Nbd(uri, patience=300)
        self.begin, self.written, self.failure = number * SHARE, 0, None

    def run(self):
        try:
            while self.written < SHARE:
                offset = self.begin + self.written
                self.nbd.write(offset, content(offset, 1))
                self.written += CHUNK
        except Exception as error:
            self.failure = repr(error)


def waiting(service):
    """Changes that wait for space, as the servers say."""
    drives = [d for s in service.pliant("server", "list")["servers"] for d in s["drives"]]
    return sum(d["usage"]["waiting_for_space"] for d in drives if "usage" in d)


def stopped_at(fillers):
    """Waits until no write has been answered for a while; how much has been written."""
    last, since = -1, time.monotonic()
    while time.monotonic() - since < 3:
        written = sum(f.written for f in fillers)
        if written != last:
            last, since = written, time.monotonic()
        time.sleep(0.05)
    return last


def test_writes_wait_for_space_and_nothing_else_does(small):
    volume = small.create(size=1)
    uri = next(u for u in small.attach(volume)["nbd_uris"] if u.startswith("nbd+unix"))
    before = small.in_sync(volume)
    fillers = [Filler(uri, number) for number in range(WRITERS)]
    for filler in fillers:
        filler.start()
    full = stopped_at(fillers)
    assert [f.failure for f in fillers] == [None] * WRITERS
    assert 600 * MIB < full < VOLUME, f"the drives should be full, {full >> 20} MiB are written"

    # What needs no space goes on while others wait for it: reads, and writes over what is there.
    nbd = Nbd(uri, patience=30)
    longest, rounds, until = 0, 0, time.monotonic() + PATIENCE
    newer = {}
    while time.monotonic() < until:
        offset = fillers[rounds % WRITERS].begin + rounds * CHUNK % (32 * MIB)
        asked = time.monotonic()
        version = newer.get(offset, 1)
        assert nbd.read(offset, CHUNK) == content(offset, version), f"chunk at {offset}"
        newer[offset] = version + 1
        nbd.write(offset, content(offset, version + 1))
        longest = max(longest, time.monotonic() - asked)
        rounds += 1
    print(f"{full >> 20} MiB stored; full for {PATIENCE} s, {rounds} rounds, longest {longest:.2f} s")
    assert longest < 5
    assert sum(f.written for f in fillers) == full, "there was no space, and yet a write found some"
    assert [f.failure for f in fillers] == [None] * WRITERS
    after = small.volume(volume)
    assert (after["epoch"], after["degraded"]) == (before["epoch"], False), "waiting for space is no failure"
    assert waiting(small) >= WRITERS

    # Nor does it keep a mirror from taking over.
    primary = small.replica(volume, "primary")["server"]
    small.kill(primary)
    small.roles[primary].wait()
    wait_for(lambda: small.volume(volume)["epoch"] > before["epoch"], 30, "a failover")
    small.start_role(primary)
    for offset in sorted(newer)[:8]:
        assert nbd.read(offset, CHUNK) == content(offset, newer[offset]), f"chunk at {offset}"

    # Space returns: who waited goes on.
    trimmed = fillers[0].begin + 64 * MIB, 140 * MIB
    for offset in range(trimmed[0], sum(trimmed), MIB):
        nbd.trim(offset, MIB)
    wait_for(lambda: all(f.written == SHARE or f.failure for f in fillers), 60, "the writes that waited")
    assert [f.failure for f in fillers] == [None] * WRITERS

    for offset in range(0, VOLUME, CHUNK):
        gone = trimmed[0] <= offset < sum(trimmed)
        wanted = bytes(CHUNK) if gone else content(offset, newer.get(offset, 1))
        assert nbd.read(offset, CHUNK) == wanted, f"chunk at {offset}"
    small.detach(volume)
    small.boto().delete_volume(VolumeId=volume)


@pytest.fixture
def growing():
    """Two servers with small drives, and two with roomier ones that are not there yet."""
    later = ("server-a-3", "server-a-4")

    def change(name, text):
        return text if name in later else smaller(name, text)

    flags = ("--zones", "a", "--servers-per-zone", "4", "--ssd-gib", "1", "--hdd-gib", "1")
    one = Roles(*flags, change=change, later=later).start()
    yield one
    one.destroy()


def test_writes_that_wait_go_on_because_their_replicas_move_to_other_drives(growing):
    volume = growing.create(size=1)
    uri = next(u for u in growing.attach(volume)["nbd_uris"] if u.startswith("nbd+unix"))
    growing.in_sync(volume)
    fillers = [Filler(uri, number) for number in range(WRITERS)]
    for filler in fillers:
        filler.start()
    full = stopped_at(fillers)
    assert 600 * MIB < full < VOLUME and [f.failure for f in fillers] == [None] * WRITERS
    for name in growing.later:
        growing.start_role(name)
    wait_for(lambda: all(f.written == SHARE or f.failure for f in fillers), 120, "the writes that waited")
    assert [f.failure for f in fillers] == [None] * WRITERS

    def moved():
        servers = {r["server"] for r in growing.volume(volume)["replicas"]}
        return servers == set(growing.later)

    wait_for(moved, 120, "both replicas on the large drives")
    nbd = Nbd(uri, patience=30)
    for offset in range(0, VOLUME, CHUNK):
        assert nbd.read(offset, CHUNK) == content(offset, 1), f"chunk at {offset}"
    growing.detach(volume)
    growing.boto().delete_volume(VolumeId=volume)
