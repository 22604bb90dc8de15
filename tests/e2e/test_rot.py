"""Blocks that rot on a drive: never delivered, repaired from the other replica, counted; an error
only when both are bad. More of it, anywhere on a drive: `make rot`."""

import os

import pytest

from nbd import Nbd, NbdError
from rot import Rot, used
from service import Service, wait_for

BLOCK = 4096
BLOCKS = 2048
REQUEST = 256 * BLOCK


@pytest.fixture(scope="module")
def small():
    one = Service("--zones", "a", "--servers-per-zone", "2", "--ssd-gib", "4", "--remirror-delay", "600").start()
    yield one
    one.destroy()


def content(block, version=1):
    """Like no other block."""
    return (b"rot %12d %14d\n" % (block, version)) * (BLOCK // 32)


@pytest.fixture(scope="module")
def written(small):
    """A volume with data that lies in its place on both drives: whole slots are written there at once."""
    volume = small.create(size=1)
    nbd = Nbd(next(u for u in small.attach(volume)["nbd_uris"] if u.startswith("nbd+unix")))
    for first in range(0, BLOCKS, 256):
        nbd.write(first * BLOCK, b"".join(content(block) for block in range(first, first + 256)))
    yield volume, nbd
    nbd.close()


def drive_file(service, server):
    return next((service.dir / "drives").glob(f"**/*{server}*ssd*"), None) or next(
        path for path in (service.dir / "drives").glob("**/*ssd*") if server in str(path)
    )


def places(path):
    """Where each block of the volume lies in the file, by its content."""
    found = {}
    for offset, data in used(path):
        if data[:4] == b"rot ":
            found.setdefault(int(data[4:16]), []).append(offset)
    return found


def flip(service, server, blocks):
    """One bit of every copy of these blocks in the file of a server's drive."""
    path = drive_file(service, server)
    where = places(path)
    with open(path, "r+b") as file:
        for block in blocks:
            for offset in where[block]:
                os.pwrite(file.fileno(), bytes([content(block)[77] ^ 1]), offset + 77)
        os.fsync(file.fileno())


def counts(service, server):
    shown = next(s for s in service.pliant("server", "list")["servers"] if s["server"] == server)
    usage = next(d for d in shown["drives"] if d["drive"] == "ssd")["usage"]
    return tuple(usage[f"bad_blocks_{what}"] for what in ("found", "repaired", "lost"))


def scrub(service, volume):
    shown = service.pliant("volume", "scrub", volume, "--wait")
    assert shown["finished"] and shown["bytes"] >= 2 * BLOCKS * BLOCK, shown
    return tuple(shown[f"bad_blocks_{what}"] for what in ("found", "repaired", "lost"))


def test_rot_on_the_primary_is_repaired_by_the_reads_that_meet_it(small, written):
    volume, nbd = written
    server = small.replica(volume, "primary")["server"]
    flip(small, server, range(3, BLOCKS, 100))
    rotten = len(range(3, BLOCKS, 100))
    for first in range(0, BLOCKS, 256):
        expected = b"".join(content(block) for block in range(first, first + 256))
        assert nbd.read(first * BLOCK, REQUEST) == expected, "rot was delivered"
    wait_for(lambda: counts(small, server) == (rotten, rotten, 0), 15, f"{rotten} repairs counted")
    where = places(drive_file(small, server))
    assert all(where.get(block) for block in range(3, BLOCKS, 100))
    assert scrub(small, volume) == (0, 0, 0)
    log = (small.dir / "log" / f"{server}.log").read_text()
    assert f"volume={volume}" in log and "written again from another replica" in log


def test_rot_on_the_mirror_is_found_and_repaired_by_one_scrub(small, written):
    volume, _ = written
    server = small.replica(volume, "mirror")["server"]
    rotten = range(7, BLOCKS, 100)
    flip(small, server, rotten)
    assert scrub(small, volume) == (len(rotten), len(rotten), 0)
    assert scrub(small, volume) == (0, 0, 0)
    wait_for(lambda: counts(small, server) == (len(rotten), len(rotten), 0), 15, "repairs counted")


def test_rot_on_both_is_an_error_of_that_block_alone(small, written):
    volume, nbd = written
    bad = 1111
    before = {role: counts(small, small.replica(volume, role)["server"]) for role in ("primary", "mirror")}
    for role in before:
        flip(small, small.replica(volume, role)["server"], [bad])
    with pytest.raises(NbdError, match="error 5"):
        nbd.read(bad * BLOCK, BLOCK)
    for block in [*range(bad - 20, bad), *range(bad + 1, bad + 20)]:
        assert nbd.read(block * BLOCK, BLOCK) == content(block)

    def lost():
        server = small.replica(volume, "primary")["server"]
        return counts(small, server)[2] == before["primary"][2] + 1

    wait_for(lost, 15, "the lost block counted")
    nbd.write(bad * BLOCK, content(bad, version=2))
    assert nbd.read(bad * BLOCK, BLOCK) == content(bad, version=2)
    assert scrub(small, volume) == (0, 0, 0)


def test_rot_anywhere_on_a_drive_while_its_server_is_down():
    assert Rot(mib=128, per=60, seed=1).run(rounds=3) == []
