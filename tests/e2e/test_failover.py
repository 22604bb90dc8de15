"""Servers, the manager and node managers die or hang; programs see latency, never an error."""

import os
import signal
import time

import pytest

from service import Load, Service, assert_clean, wait_for


@pytest.fixture
def volume(service):
    one = service.create(size=4, volume_type="io2", Iops=4000)
    attachment = service.attach(one)
    yield one, next(u for u in attachment["nbd_uris"] if u.startswith("nbd+unix"))
    service.detach(one)
    service.boto().delete_volume(VolumeId=one)


@pytest.mark.parametrize("role", ["primary", "mirror"])
def test_a_killed_server_is_never_an_error(service, volume, role):
    one, uri = volume
    load = Load(uri, offset=0, length=64 << 20, workers=4, rate=1000)
    for _ in range(3):
        before = service.in_sync(one)
        service.kill(service.replica(one, role)["server"])
        wait_for(lambda b=before: service.volume(one)["epoch"] > b["epoch"] or role == "mirror", 20, "failover")
        service.in_sync(one)
    assert_clean(load.stop())


def test_a_hung_primary_is_replaced(service, volume):
    one, uri = volume
    load = Load(uri, offset=0, length=64 << 20, workers=4, rate=500)
    before = service.in_sync(one)
    server = service.replica(one, "primary")["server"]
    pid = service.kill(server, signal.SIGSTOP)
    try:
        wait_for(
            lambda: (service.replica(one, "primary") or {}).get("server") != server and service.volume(one)["epoch"] > before["epoch"],
            20, "a new primary",
        )  # fmt: skip
    finally:
        os.kill(pid, signal.SIGCONT)
    service.in_sync(one)
    report = load.stop()
    assert_clean(report)
    assert report["longest_ms"] <= 8000, report


def test_the_manager_is_not_on_the_path_of_io(service, volume):
    one, uri = volume
    service.in_sync(one)
    load = Load(uri, offset=0, length=64 << 20, workers=4, rate=1000)
    for _ in range(3):
        service.kill("manager")
        wait_for(lambda: service.pliant("volume", "show", one, check=False), 20, "the manager again")
    report = load.stop()
    assert_clean(report)
    assert report["longest_ms"] < 1000, report


def test_a_detach_during_a_failover_comes_to_its_end(service):
    """The node manager drains to the new primary; nobody has to force it."""
    one = service.create(size=4, volume_type="io2", Iops=4000)
    for _ in range(3):
        attachment = service.attach(one)
        load = Load(next(u for u in attachment["nbd_uris"] if u.startswith("nbd+unix")), workers=8, patience=1)
        service.in_sync(one)
        service.kill(service.replica(one, "primary")["server"])
        service.detach(one)
        load.process.stdin.close()
        load.process.wait(timeout=60)
    service.boto().delete_volume(VolumeId=one)


def test_everything_dies_at_once_and_nothing_is_lost():
    service = Service("--remirror-delay", "5").start()
    volume = service.create(size=2)
    attachment = service.attach(volume)
    uri = next(u for u in attachment["nbd_uris"] if u.startswith("nbd+unix"))
    load = Load(uri, offset=0, length=64 << 20, workers=4, rate=1000)
    service.in_sync(volume)
    names = [p.stem for p in (service.dir / "run").glob("*.pid")]
    for name in names:
        service.kill(name)
    wait_for(lambda: service.pliant("volume", "show", volume, check=False), 30, "the manager again")
    service.in_sync(volume)
    assert_clean(load.stop())
    service.stop()
    again = Service("--remirror-delay", "5", directory=service.dir).start()
    assert again.volume(volume)["state"] == "in-use"
    again.in_sync(volume)
    again.stop()


def test_a_server_that_never_returns_is_replaced():
    """With the supervisor told not to restart, a lost mirror is made anew on another server."""
    service = Service("--servers-per-zone", "3", "--no-restart", "--remirror-delay", "1").start()
    volume = service.create(size=4, volume_type="io2", Iops=4000)
    attachment = service.attach(volume)
    uri = next(u for u in attachment["nbd_uris"] if u.startswith("nbd+unix"))
    load = Load(uri, offset=0, length=64 << 20, workers=4, rate=500)
    for role in ["primary", "mirror"]:
        gone = service.replica(volume, role)["server"]
        service.kill(gone)
        if role == "primary":
            wait_for(
                lambda g=gone: g not in {r["server"] for r in service.in_sync(volume)["replicas"]}, 30,
                "a new mirror elsewhere",
            )  # fmt: skip
    report = load.stop()
    assert_clean(report)
    service.stop()
