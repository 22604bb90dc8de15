"""Servers that are emptied while their volumes are used, with real processes."""

import subprocess

import pytest

from roles import Roles
from service import BINARY, Load, assert_clean, wait_for

VOLUMES = 8


@pytest.fixture(scope="module")
def service():
    flags = ("--zones", "a", "--servers-per-zone", "3", "--ssd-iops", "100000", "--ssd-throughput", "10000")
    one = Roles(*flags, "--remirror-delay", "3", change=lambda _, text: text).start()
    yield one
    one.destroy()


def on(service, server):
    volumes = service.pliant("volume", "list")["volumes"]
    return [v["volume_id"] for v in volumes if any(r["server"] == server for r in v["replicas"])]


def shown(service, server):
    return service.pliant("server", "show", server)


def test_a_server_is_drained_under_load_and_taken_away(service):
    volumes = [service.create(size=1) for _ in range(VOLUMES)]
    attached = [service.attach(v, device=f"/dev/sd{letter}") for v, letter in zip(volumes, "fghijklm")]
    uris = [next(u for u in one["nbd_uris"] if u.startswith("nbd+unix")) for one in attached]
    loads = [Load(uri, length=32 << 20, workers=2, rate=100) for uri in uris]
    victim = "server-a-1"
    before = on(service, victim)
    assert len(before) >= 2, "three servers share the replicas of eight volumes"
    drained = subprocess.run(
        [BINARY, "server", "drain", victim, "--wait", "--json"],
        env=service.client_env(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert drained.returncode == 0, drained.stderr
    assert "replicas left" in drained.stderr, "progress is shown"
    assert on(service, victim) == []
    state = shown(service, victim)
    assert (state["duty"], state["replicas"], state["drain"]["stuck"]) == ("draining", 0, None)
    for volume in volumes:
        service.in_sync(volume)
    # It goes away, and nobody notices.
    epochs = [service.volume(v)["epoch"] for v in volumes]
    service.kill(victim)
    made = service.create(size=1)
    assert victim not in [r["server"] for r in service.in_sync(made)["replicas"]]
    stopped = [load.stop() for load in loads]
    assert [service.volume(v)["epoch"] for v in volumes] == epochs, "a server without replicas was missed"
    for ended in stopped:
        assert_clean(ended)


def test_it_serves_again_when_it_is_told_so(service):
    victim = "server-a-1"
    service.start_role(victim)
    wait_for(lambda: shown(service, victim)["up"], 20, "up")
    assert shown(service, victim)["duty"] == "draining", "the wish outlives the server"
    assert service.pliant("server", "uncordon", victim)["duty"] == "serving"
    for _ in range(3):
        service.create(size=1)
    assert on(service, victim), "it is the emptiest"


def test_a_cordoned_server_gets_nothing_new(service):
    assert service.pliant("server", "cordon", "server-a-2")["duty"] == "cordoned"
    before = on(service, "server-a-2")
    for _ in range(3):
        service.create(size=1)
    assert on(service, "server-a-2") == before
    with pytest.raises(AssertionError, match="No server 'server-a-9' has ever registered"):
        service.pliant("server", "drain", "server-a-9")
