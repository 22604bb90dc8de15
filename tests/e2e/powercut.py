"""Cuts the power of a whole service: `make powercut`.

One run under load is recorded below every drive (`recorder.py`). Then, for one moment after the
other, each drive is made as a power cut at that moment may leave it, the service is started on
these drives, and everything is read back: what was acknowledged before the moment must be there,
nothing that was asked for only after it, and zeros where nothing was written. At every tenth
moment the primaries are killed then, and the same must come from the mirrors.
"""

import argparse
import bisect
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

from nbd import Nbd, NbdError
from recorder import BLOCK, Log, Playback, Recorder, rng_of
from service import ROOT, Service, wait_for

# `pliant up` makes a drive of 2 GiB in a file of 4.
DRIVE_GIB = 2
DRIVE = 4 << 30
WRITERS = 4  # Of each volume.
# Blocks that the writers of a volume share, two by two, and what each has for itself.
SHARED, OWN = 1024, 1024
REACH = SHARED + WRITERS * OWN
# Of a volume, what is read back: more than was written.
READ_BACK = (REACH + 256) * BLOCK
ZEROS = bytes(BLOCK)


def content(volume, block, writer, version):
    """Says in every 32 bytes what it is, so that torn, stale and misplaced blocks show."""
    return struct.pack("<IIQQQ", 0x504C4E54, volume, block, writer, version) * (BLOCK // 32)


class Writer(threading.Thread):
    """Changes blocks that nobody else changes, one request at a time, and remembers all of it."""

    def __init__(self, recording, volume, number, uri):
        super().__init__(daemon=True)
        self.recording, self.volume, self.number = recording, volume, number
        self.rng = rng_of(recording.seed, volume, number)
        self.nbd = Nbd(uri)
        self.acknowledged, self.failure = 0, None
        # Of each block: when asked for, when acknowledged, version (0: zeros).
        self.history = {}

    def run(self):
        version = 0
        try:
            while not self.recording.over.is_set():
                version += 1
                self.change(version)
        except (OSError, NbdError, AssertionError) as error:
            # What was under way at the cut stays without an answer.
            if not self.recording.over.is_set() or isinstance(error, NbdError):
                self.failure = repr(error)

    def place(self):
        """Mostly small and where neighbours write; sometimes whole extents, aligned or not."""
        if self.rng.random() < 0.7:
            pair = self.rng.randrange(SHARED // 2 // WRITERS) * WRITERS + self.number
            # A few places are written again and again.
            pair = pair if self.rng.random() < 0.7 else pair % (8 * WRITERS)
            return 2 * pair, self.rng.choice([1, 1, 2])
        count = self.rng.choice([1, 3, 8, 16, 16, 40, 64, 256])
        first = self.rng.randrange(OWN - count + 1)
        first -= first % 16 if self.rng.random() < 0.6 else 0
        return SHARED + self.number * OWN + first, count

    def change(self, version):
        first, count = self.place()
        kind = self.rng.random()
        blocks = range(first, first + count)
        asked = time.monotonic()
        entry = [asked, float("inf"), version if kind < 0.85 else 0]
        for block in blocks:
            self.history.setdefault(block, []).append(entry)
        if kind < 0.85:
            data = b"".join(content(self.volume, b, self.number, version) for b in blocks)
            self.nbd.write(first * BLOCK, data)
        elif kind < 0.95:
            self.nbd.trim(first * BLOCK, count * BLOCK)
        else:
            self.nbd.write_zeroes(first * BLOCK, count * BLOCK)
        entry[1] = time.monotonic()
        self.acknowledged += 1
        if self.rng.random() < 0.2:
            self.recording.look()


class Recording:
    """A service under load, recorded until its power is cut."""

    def __init__(self, folder, seed, seconds):
        self.seed, self.dir = seed, folder / "service"
        self.over, self.moments = threading.Event(), []
        self.dir.mkdir(parents=True)
        self.prepare()
        self.recorders = {}
        for name in ("server-a-1", "server-a-2"):
            for media in ("ssd", "hdd"):
                at = folder / f"{name}.{media}"
                path = self.dir / "drives" / name / media
                self.recorders[name, media] = Recorder(path, DRIVE, at.with_suffix(at.suffix + ".base"),
                                                       at.with_suffix(at.suffix + ".log"))  # fmt: skip
        try:
            self.run(seconds)
        finally:
            for recorder in self.recorders.values():
                recorder.stop()
                recorder.base.unlink()
                recorder.path.unlink()

    def __str__(self):
        acknowledged = sum(writer.acknowledged for writer in self.writers)
        return (f"recorded {acknowledged} acknowledged changes, {len(self.moments)} moments, "
                f"{sum(self.lengths()) >> 20} MiB of log")  # fmt: skip

    def prepare(self):
        """Settings that `pliant up` has no flags for: journals so small that they come round often."""
        first = Service("--zones", "a", "--servers-per-zone", "2", "--ssd-gib", str(DRIVE_GIB), "--hdd-gib", str(DRIVE_GIB), "--hdd-seek-ms", "0",
                        "--hdd-ops-per-sec", "100000", "--hdd-mib-per-sec", "4000", "--hdd-iops", "4000",
                        "--remirror-delay", "60", directory=self.dir).start()  # fmt: skip
        first.stop()
        for made in ("drives", "manager", "nodes"):
            shutil.rmtree(self.dir / made)
        settings = self.dir / "up.toml"
        settings.write_text(re.sub(r"journal_mib = \d+", "journal_mib = 8", settings.read_text()))

    def look(self):
        """Remembers how long the logs are now, if they stand still while that is found out."""
        before = time.monotonic()
        lengths = self.lengths()
        if lengths == self.lengths():
            self.moments.append((before, time.monotonic(), lengths))

    def lengths(self):
        return tuple(recorder.length() for recorder in self.recorders.values())

    def run(self, seconds):
        service = Service(directory=self.dir).start()
        self.volumes = [service.create(size=1)]
        was = service.in_sync(self.volumes[0])
        # So that not all primaries are on one server.
        service.kill(service.replica(self.volumes[0], "primary")["server"])
        wait_for(lambda: service.volume(self.volumes[0])["epoch"] > was["epoch"], 30, "a failover")
        service.in_sync(self.volumes[0])
        self.volumes += [service.create(size=1), service.create(size=1, volume_type="standard")]
        attached = [service.attach(v, device=f"/dev/sd{d}") for v, d in zip(self.volumes, "fgh", strict=True)]
        self.uris = [next(u for u in a["nbd_uris"] if u.startswith("nbd+unix")) for a in attached]
        before = [service.in_sync(v) for v in self.volumes]
        print("primaries:", ", ".join(service.replica(v, "primary")["server"] for v in self.volumes))
        self.writers = [Writer(self, v, w, uri) for v, uri in enumerate(self.uris) for w in range(WRITERS)]
        for writer in self.writers:
            writer.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.look()
            time.sleep(0.003)
        after = [service.in_sync(v) for v in self.volumes]
        for was, now in zip(before, after, strict=True):
            # The metadata store is not cut: its content must have held at every moment.
            assert was["epoch"] == now["epoch"], "a failover while recording: is the machine overloaded?"
        self.over.set()
        self.kill(service)
        for writer in self.writers:
            writer.join()
            assert writer.failure is None, writer.failure
        self.moments.sort()
        for made in ("manager", "nodes"):
            shutil.copytree(self.dir / made, self.dir / f"{made}.kept")
        self.histories = [
            {b: h for w in self.writers if w.volume == v for b, h in w.history.items()} for v in range(len(self.volumes))
        ]

    def kill(self, service):
        """The supervisor first, so that nobody is started again."""
        pids = [service.process.pid, *(service.pid(path.stem) for path in (self.dir / "run").glob("*.pid"))]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        service.process.wait()
        service.process = None
        for pid in pids[1:]:
            wait_for(lambda p=pid: not pathlib.Path(f"/proc/{p}").exists(), 20, f"the end of process {pid}")
        # What the node manager had mounted for kernel devices.
        for line in pathlib.Path("/proc/mounts").read_text().splitlines():
            if line.split()[1].startswith(f"{self.dir}/nodes/"):
                subprocess.run(["umount", "-l", line.split()[1]], check=True)


def read_all(uri):
    nbd = Nbd(uri, patience=20)
    try:
        return b"".join(nbd.read(at, min(1 << 20, READ_BACK - at)) for at in range(0, READ_BACK, 1 << 20))
    finally:
        nbd.close()


class Power:
    """Plays a recording back, cut at one moment after the other."""

    def __init__(self, recording, scratch, forgets=0):
        self.recording, self.dir = recording, recording.dir
        self.drives = []
        for (name, media), recorder in recording.recorders.items():
            image = scratch / f"{name}.{media}"
            flushed = image.with_suffix(f".{media}.flushed")
            playback = Playback(Log(recorder.log), DRIVE, flushed, forgets)
            recorder.path.unlink(missing_ok=True)
            recorder.path.symlink_to(image)
            self.drives.append((playback, image))

    def cut(self, moment, number):
        """Returns what was found wrong, and what was done to whom."""
        rng = rng_of(self.recording.seed, "cut", number)
        told = []
        for (playback, image), length in zip(self.drives, moment[2], strict=True):
            tail = playback.advance(length)
            told.append(playback.cut(image, tail, rng))
        for made in ("manager", "nodes"):
            shutil.rmtree(self.dir / made)
            shutil.copytree(self.dir / f"{made}.kept", self.dir / made)
        service = Service(directory=self.dir).start()
        try:
            wrong = self.read_back(moment)
            if number % 10 == 9 and not wrong:
                wrong = [f"from the mirror: {w}" for w in self.read_mirrors(service, moment)]
        finally:
            service.stop()
        return wrong, told

    def read_mirrors(self, service, moment):
        volumes = self.recording.volumes
        before = [service.in_sync(v) for v in volumes]
        for name in {service.replica(v, "primary")["server"] for v in volumes}:
            service.kill(name)
            for volume, was in zip(volumes, before, strict=True):
                role = next(r["role"] for r in was["replicas"] if r["server"] == name)
                if role == "primary":
                    wait_for(lambda v=volume, w=was: service.volume(v)["epoch"] > w["epoch"], 30, "a failover")
            for volume in volumes:
                service.in_sync(volume)
        return self.read_back(moment)

    def read_back(self, moment):
        """What is wrong with the content of the volumes, block by block."""
        wrong = []
        for volume, uri in enumerate(self.recording.uris):
            history = self.recording.histories[volume]
            try:
                data = read_all(uri)
            except (OSError, NbdError) as error:
                wrong.append(f"volume {volume} cannot be read: {error!r}")
                continue
            for block in range(READ_BACK // BLOCK):
                found = data[block * BLOCK : (block + 1) * BLOCK]
                problem = self.judge(volume, block, found, history.get(block, []), moment)
                if problem:
                    wrong.append(f"volume {volume} block {block}: {problem}")
        return wrong

    @staticmethod
    def judge(volume, block, found, changes, moment):
        """None, or what is wrong with a block that was read back after a cut at `moment`."""
        # Acknowledged before the logs were looked at; asked for before that was over.
        done = bisect.bisect_right(changes, moment[0], key=lambda c: c[1])
        asked = bisect.bisect_right(changes, moment[1], key=lambda c: c[0])
        legal = {change[2] for change in changes[max(0, done - 1) : asked]} | ({0} if done == 0 else set())
        if found == ZEROS:
            return None if 0 in legal else f"zeros, not version {sorted(legal)}"
        _, v, b, writer, version = struct.unpack_from("<IIQQQ", found)
        if found != content(volume, block, writer, version) or (v, b) != (volume, block):
            return f"volume {v} block {b} version {version}, or torn; not version {sorted(legal)}"
        return None if version in legal else f"version {version}, not {sorted(legal)}"


def play_back(recording, points, forgets=0):
    """Cuts the power at `points` moments; returns what was wrong, moment by moment."""
    rng = rng_of(recording.seed, "moments", forgets)
    moments = sorted(rng.sample(recording.moments, points))
    # In memory, if there is room: every drive is made anew for every moment.
    memory = pathlib.Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 6 << 30
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="pliant-powercut-", dir=memory if roomy else recording.dir.parent))
    bad = []
    try:
        power = Power(recording, scratch, forgets)
        for number, moment in enumerate(moments):
            began = time.monotonic()
            wrong, told = power.cut(moment, number)
            took = time.monotonic() - began
            if wrong:
                bad.append(f"cut {number} of {points}: {len(wrong)} wrong: {'; '.join(wrong[:5])}")
            if wrong or points < 50 or number % 10 == 0:
                print(f"cut {number}: unflushed writes {', '.join(told)}; {took:.2f} s; {len(wrong)} wrong", flush=True)
    finally:
        shutil.rmtree(scratch)
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=240, help="moments at which the power is cut")
    parser.add_argument("--seconds", type=float, default=15, help="of load that is recorded")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the load and the moments")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="powercut-", dir=ROOT / "target"))
    began = time.monotonic()
    try:
        recording = Recording(folder, arguments.seed, arguments.seconds)
        print(recording, flush=True)
        bad = play_back(recording, arguments.points)
    finally:
        if os.environ.get("KEEP") is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(*bad, sep="\n")
    print(f"{arguments.points} power cuts, {len(bad)} with wrong content; {time.monotonic() - began:.0f} s")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
