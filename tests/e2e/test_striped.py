"""Volumes whose replicas are striped over several drives of their servers, with real processes."""

import json
import signal

import pytest

from roles import Roles
from service import ROOT, Load, assert_clean, run, wait_for

SSDS = ["ssd", "ssd-1", "ssd-2"]


def with_more_drives(name, text):
    """Three SSD drives on each server."""
    if not name.startswith("server"):
        return text
    head, *drives = text.split("[[drive]]\n")
    ssd = next(d for d in drives if 'name = "ssd"' in d)
    more = [ssd.replace('/ssd"', f'/{n}"').replace('name = "ssd"', f'name = "{n}"') for n in SSDS[1:]]
    return head + "".join("[[drive]]\n" + drive for drive in [*drives, *("\n" + m for m in more)])


@pytest.fixture(scope="module")
def several():
    flags = ("--zones", "a", "--servers-per-zone", "3", "--ssd-gib", "4", "--remirror-delay", "3")
    one = Roles(*flags, change=with_more_drives).start()
    yield one
    one.destroy()


@pytest.fixture(scope="module")
def striped(several):
    made = several.pliant("volume", "create", "--zone", several.zone("a"), "--size", 1, "--stripes", 2, "--wait")
    volume = made["volume_id"]
    assert made["stripes"] == 2
    uri = next(u for u in several.attach(volume)["nbd_uris"] if u.startswith("nbd+unix"))
    return volume, uri


def drives(service, volume):
    return {r["server"]: r["drives"] for r in service.in_sync(volume)["replicas"]}


def test_fio_verifies_a_striped_volume_and_every_drive_of_it_is_used(several, striped):
    volume, uri = striped
    where = drives(several, volume)
    assert all(len(set(on)) == 2 for on in where.values()), where
    out = run(
        "fio", "--name=verify", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=768k", "--iodepth=16",
        "--size=513m", "--io_size=192m", "--verify=crc32c", "--verify_fatal=1", "--verify_async=0", "--verify_state_save=0",
        "--randrepeat=1", "--output-format=json", cwd=ROOT / "target",
    )  # fmt: skip
    job = json.loads(out[out.index("{") :])["jobs"][0]
    assert job["error"] == 0 and job["write"]["total_ios"] > 0
    servers = several.pliant("server", "list")["servers"]
    for server in servers:
        for drive in server["drives"]:
            used = drive["usage"]["used_bytes"]
            if drive["drive"] in where.get(server["server"], []):
                assert used > 32 << 20, f"{server['server']}/{drive['drive']} holds {used} bytes"
            else:
                assert used == 0, f"{server['server']}/{drive['drive']} holds {used} bytes"


def test_stripes_change_under_load(several, striped):
    volume, uri = striped
    load = Load(uri)
    for stripes in (3, 1, 2):
        several.pliant("volume", "modify", volume, "--stripes", stripes, "--wait")
        assert [len(on) for on in drives(several, volume).values()] == [stripes] * 2
    assert_clean(load.stop())


def test_more_stripes_than_a_server_has_drives_are_refused(several, striped):
    with pytest.raises(AssertionError, match="no server there has more than 3.*fewer stripes"):
        several.pliant("volume", "modify", striped[0], "--stripes", 4)
    with pytest.raises(AssertionError, match="1 to 8 drives"):
        several.pliant("volume", "modify", striped[0], "--stripes", 9)


def test_a_killed_server_comes_back_with_its_striped_replica(several, striped):
    volume, uri = striped
    load = Load(uri)
    for role in ("primary", "mirror"):
        server = several.replica(volume, role)["server"]
        several.kill(server, signal.SIGKILL)
        several.roles[server].wait(timeout=30)
        several.start_role(server)
        several.all_up()
        several.in_sync(volume)
    assert_clean(load.stop())


@pytest.mark.parametrize("role", ["mirror", "primary"])
def test_a_replica_that_lost_one_of_its_drives_is_made_anew(several, striped, role):
    volume, uri = striped
    load = Load(uri)
    before = several.replica(volume, role)
    server, lost = before["server"], before["drives"][1]
    several.kill(server, signal.SIGKILL)
    several.roles[server].wait(timeout=30)
    (several.dir / "drives" / server / lost).unlink()
    several.start_role(server)

    def anew():
        replicas = several.volume(volume)["replicas"]
        return before["replica_id"] not in [r["replica_id"] for r in replicas]

    wait_for(anew, 90, "the part that was left freed, and another replica in its place")
    assert [len(on) for on in drives(several, volume).values()] == [2, 2]
    assert_clean(load.stop())
    several.all_up()
