"""HDDs whose journals lie on another device, with real processes: kills, and journals that are not theirs."""

import random
import time

import pytest

from nbd import Nbd
from roles import Roles
from service import Load, assert_clean, wait_for

SERVERS = ["server-a-1", "server-a-2"]
KILLS = 6
# Beyond what the loads write.
MARKS = 512 << 20
# What an SSD in front of a slow disk does not hide is not what is shown here.
SWIFT = ("--hdd-seek-ms", "0", "--hdd-ops-per-sec", "100000", "--hdd-mib-per-sec", "4000", "--hdd-iops", "4000")


def apart(name, text):
    """The journal of the HDD is a file of its own, as it would be on an SSD."""
    if not name.startswith("server"):
        return text
    path = next(line for line in text.splitlines() if line.startswith("path") and line.endswith('/hdd"'))
    return text.replace(path, path + "\njournal_" + path.replace('/hdd"', '/on-the-ssd"'))


@pytest.fixture(scope="module")
def two():
    flags = ("--zones", "a", "--servers-per-zone", "2", "--ssd-gib", "1", "--hdd-gib", "4", "--remirror-delay", "600")
    one = Roles(*flags, *SWIFT, change=apart).start()
    yield one
    one.destroy()


@pytest.fixture(scope="module")
def loaded(two):
    volume = two.create(size=1, volume_type="standard")
    uri = next(u for u in two.attach(volume)["nbd_uris"] if u.startswith("nbd+unix"))
    for server in SERVERS:
        assert hdd(two, server)["usage"]["journal_apart"]
    return volume, uri


def journal(service, server):
    return service.dir / "drives" / server / "on-the-ssd"


def hdd(service, name):
    server = next(s for s in service.pliant("server", "list")["servers"] if s["server"] == name)
    return next(drive for drive in server["drives"] if drive["drive"] == "hdd")


def kill(service, server):
    service.kill(server)
    service.roles[server].wait(timeout=30)


def test_servers_that_are_killed_lose_nothing(two, loaded):
    volume, uri = loaded
    load = Load(uri, workers=4, rate=600, read_percent=30)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    for _ in range(KILLS):
        # Both at once too: then nothing but what lies on the devices is left.
        victims = moments.choice([SERVERS[:1], SERVERS[1:], SERVERS])
        time.sleep(moments.uniform(0.2, 1.5))
        for server in victims:
            kill(two, server)
        for server in victims:
            two.start_role(server)
        two.all_up()
        two.in_sync(volume)
    assert_clean(load.stop())


def test_a_journal_that_is_not_the_drives_is_refused_and_the_mirror_serves(two, loaded):
    volume, uri = loaded
    ours, other = SERVERS
    path = journal(two, ours)
    load = Load(uri, workers=4, rate=600, read_percent=30, seed=2)
    kill(two, ours)
    older = path.read_bytes()
    two.start_role(ours)
    two.all_up()
    two.in_sync(volume)
    kill(two, ours)
    own = path.read_bytes()
    foreign = journal(two, other).read_bytes()
    nbd, marks = Nbd(uri), []
    for swapped, words in [
        (bytes(len(own)), "is blank, and the drive is not"),
        (older, "the journal is an older copy"),
        (foreign, "is the journal of another drive"),
    ]:
        path.write_bytes(swapped)
        two.start_role(ours)
        drive = wait_for(lambda: is_out(hdd(two, ours)), 20, f"the drive refused: {words}")
        told = drive["reason"]
        for part in (str(path.with_name("hdd")), str(path), words, "bring back the journal", "wipe the first 8 KiB"):
            assert part in told, told
        assert told in (two.dir / "log" / f"{ours}.log").read_text()
        faulty = two.volume(volume)
        assert (faulty["state"], faulty["degraded"]) == ("in-use", True)
        assert two.replica(volume, "primary")["server"] == other
        marks.append(words.encode().ljust(4096, b"."))
        nbd.write(MARKS + 4096 * len(marks), marks[-1])
        kill(two, ours)
        assert path.read_bytes() == swapped, "a journal that is not the drive's was written to"

    path.write_bytes(own)
    two.start_role(ours)
    two.all_up()
    two.in_sync(volume)
    assert hdd(two, ours)["state"] == "serving"
    # What is verified at the end is what the drive has whose journal came back.
    kill(two, other)
    wait_for(lambda: two.replica(volume, "primary")["server"] == ours, 30, "a failover")
    assert_clean(load.stop())
    assert nbd.read(MARKS + 4096, 4096 * len(marks)) == b"".join(marks)
    two.start_role(other)
    two.all_up()
    two.in_sync(volume)


def is_out(drive):
    return drive if drive.get("state") == "out-of-service" and drive.get("reason") else None
