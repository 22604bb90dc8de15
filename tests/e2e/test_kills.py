"""kill -9 of every process at every named step of a modification, under verifying load."""

import threading
import time

import pytest

from service import ROOT, Load, Service, assert_clean, run, wait_for

STEPS = ["reserve", "configure", "create", "fill", "admit", "switch", "drop", "free"]
VICTIMS = ["manager", "primary", "mirror", "learner", "node"]


@pytest.fixture(scope="module")
def own():
    # The supervisor waits longer each time before it starts a process that dies again and again; a
    # server that is merely slow to return is not to be replaced here.
    one = Service("--remirror-delay", "60").start()
    yield one
    one.stop()


class Steps:
    """Follows the manager's log; calls back as soon as a modification enters a step."""

    def __init__(self, service, volume, step, act):
        self.path = service.dir / "log" / "manager.log"
        self.wanted = (f"volume={volume}", f"step={step}")
        self.act, self.hit, self.over = act, threading.Event(), threading.Event()
        self.position = self.path.stat().st_size
        self.thread = threading.Thread(target=self.follow, daemon=True)
        self.thread.start()

    def follow(self):
        with open(self.path) as log:
            log.seek(self.position)
            while not self.over.is_set():
                line = log.readline()
                if not line:
                    time.sleep(0.001)
                elif all(w in line for w in self.wanted):
                    self.act()
                    self.hit.set()
                    return


def victim_name(service, volume, victim, before):
    if victim == "manager":
        return "manager"
    if victim == "node":
        return "node-a"
    if victim == "learner":
        known = {r["server"] for r in before["replicas"]}
        now = [r for r in service.volume(volume)["replicas"] if r["server"] not in known]
        return now[0]["server"] if now else before["replicas"][-1]["server"]
    return next(r["server"] for r in before["replicas"] if r["role"] == victim)


@pytest.fixture(scope="module")
def loaded(own):
    volume = own.create(size=4, volume_type="io2", Iops=4000)
    attachment = own.attach(volume)
    uri = next(u for u in attachment["nbd_uris"] if u.startswith("nbd+unix"))
    # Something to move, so that a fill is under way for a while; the load works behind it.
    run("fio", "--name=fill", "--ioengine=nbd", f"--uri={uri}", "--rw=write", "--bs=1m", "--iodepth=4", "--size=192m",
        cwd=ROOT / "target")  # fmt: skip
    load = Load(uri, offset=1 << 30, length=64 << 20, workers=4, rate=400, read_percent=40)
    yield volume, load
    report = load.stop()
    print(report)
    assert_clean(report)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("victim", VICTIMS)
def test_kill_at_step(own, loaded, step, victim):
    volume, load = loaded
    own.all_up()
    before = own.in_sync(volume)
    where = before["replicas"][0]["zone"]
    target = own.zone("b") if where == own.zone("a") else own.zone("a")
    name = victim_name(own, volume, victim, before) if victim != "learner" else None
    killed = []

    def act():
        killed.append(own.kill(name or victim_name(own, volume, victim, before)))

    steps = Steps(own, volume, step, act)
    size = before["size_gib"] + 1

    def asked():
        """The manager may die before it answers; the request is durable all the same. No room is
        an answer that may pass (503): a server is on its way back."""
        own.pliant("volume", "modify", volume, "--zone", target, "--size", size, check=False)
        latest = own.volume(volume)["modification"] or {"number": 0}
        return steps.hit.is_set() or latest["number"] > number

    number = (before["modification"] or {"number": 0})["number"]
    wait_for(asked, 30, "the modification")
    assert steps.hit.wait(60), f"step {step} was never reached: {own.volume(volume)['modification']}"
    ended = own.modified(volume, 90, states=("completed", "failed"))
    after = own.in_sync(volume)
    zones = {r["zone"] for r in after["replicas"]}
    expected = target if ended["state"] == "completed" else where
    assert zones == {expected}, (ended, zones)
    assert load.process.poll() is None, "the load ended early"
    assert killed


def test_space_of_every_old_replica_is_freed(own, loaded):
    """Only what the one volume needs is still promised anywhere."""
    volume, _ = loaded
    own.all_up()
    size = own.in_sync(volume)["size_gib"]

    def only_ours():
        drives = [d for s in own.pliant("server", "list")["servers"] for d in s["drives"]]
        return sum(d["promised_bytes"] for d in drives) == 2 * (size << 30)

    wait_for(only_ours, 20, "the old replicas' space")
