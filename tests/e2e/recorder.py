"""Drives that a power cut can be played back on.

Below each drive of a service QEMU's `blklogwrites` records every write, with its data, and every
flush, in the order in which the drive finished them. From such a log any state can be made in
which a cut may leave the drive: all of what was flushed, and of what was not whatever the test
chooses, torn between sectors too.
"""

import bisect
import json
import os
import random
import struct
import subprocess

from service import wait_for

BLOCK = 4096
SECTOR = 512  # What no drive tears.
FLUSH, FUA, DISCARD = 1, 2, 4
MAGIC = 0x6A736677736872


class Recorder:
    """One drive: `path` looks like a file of `size` bytes to the server, and is recorded."""

    def __init__(self, path, size, base, log):
        self.path, self.base, self.log = path, base, log
        for empty in (path, base, log):
            empty.parent.mkdir(parents=True, exist_ok=True)
            empty.touch()
        os.truncate(base, size)
        # What the recorder itself flushes need not reach a disk: no cut of this machine is tested.
        file = lambda name: {"driver": "file", "filename": str(name), "cache": {"no-flush": True}}  # noqa: E731
        node = {"driver": "blklogwrites", "node-name": "drive", "file": file(base), "log": file(log),
                "log-sector-size": BLOCK}  # fmt: skip
        socket = log.with_suffix(".sock")
        # QEMU could export a file itself, but mixes up the data of writes that come at once.
        commands = [
            ["qemu-storage-daemon", "--blockdev", json.dumps(node), "--nbd-server", f"addr.type=unix,addr.path={socket}",
             "--export", "nbd,id=export,node-name=drive,writable=on"],
            ["nbdfuse", str(path), f"nbd+unix:///drive?socket={socket}"],
        ]  # fmt: skip
        self.processes = []
        for command, there in zip(commands, (socket.exists, lambda: os.path.ismount(path)), strict=True):
            process = subprocess.Popen(command)
            self.processes.append(process)
            wait_for(lambda p=process, t=there: p.poll() is not None or t(), 20, command[0])
            assert process.poll() is None, f"{command[0]} ended"

    def length(self):
        return os.stat(self.log).st_size

    def stop(self):
        if os.path.ismount(self.path):
            subprocess.run(["umount", self.path], check=True)
        for process in reversed(self.processes):
            process.terminate()
            process.wait(timeout=60)


class Log:
    """What was recorded of one drive."""

    def __init__(self, path):
        self.file = open(path, "rb")
        self.entries = []  # (end in the log, flags, offset on the drive, length, where the data is)
        magic, version, _, sector = struct.unpack("<QQQI", self.file.read(28))
        assert (magic, version, sector) == (MAGIC, 1, BLOCK)
        size, at = os.fstat(self.file.fileno()).st_size, BLOCK
        while at + 32 <= size:
            self.file.seek(at)
            first, count, flags, _ = struct.unpack("<QQQQ", self.file.read(32))
            assert flags & DISCARD == 0, "an engine's drive discards nothing"
            data, length = at + BLOCK, count * BLOCK
            at = data + length
            if at <= size:  # The last may not be whole.
                self.entries.append((at, flags, first * BLOCK, length, data))

    def data(self, entry):
        self.file.seek(entry[4])
        return self.file.read(entry[3])


class Playback:
    """A drive's image, moved forward through its log. A drive that `forgets` loses what its last
    flushes promised, that many of them."""

    def __init__(self, log, size, image, forgets=0):
        self.log, self.image, self.next, self.forgets = log, image, 0, forgets
        self.flushes = [end for end, entry in enumerate(log.entries, 1) if entry[1] & FLUSH]
        with open(image, "wb") as file:
            file.truncate(size)

    def advance(self, upto):
        """Applies what was flushed when the log had `upto` bytes; returns the entries after that."""
        entries = self.log.entries
        end = bisect.bisect_right(entries, upto, key=lambda entry: entry[0])
        done = bisect.bisect_right(self.flushes, end) - self.forgets
        flushed = self.flushes[done - 1] if done > 0 else 0
        with open(self.image, "r+b") as file:
            for entry in entries[self.next : flushed]:
                self.apply(file, entry)
        self.next = flushed
        return entries[flushed:end]

    def apply(self, file, entry):
        if entry[3]:
            file.seek(entry[2])
            file.write(self.log.data(entry))

    def cut(self, target, tail, rng):
        """Makes `target` a drive as the cut may leave it; says what became of the unflushed `tail`."""
        fate = rng.choice(["kept", "lost", "some", "torn"])
        subprocess.run(["cp", "--sparse=auto", self.image, target], check=True)
        with open(target, "r+b") as file:
            for entry in tail:
                if entry[1] & FUA or fate == "kept" or (fate == "some" and rng.random() < 0.5):
                    self.apply(file, entry)
                elif fate == "torn" and rng.random() < 0.7:
                    data = self.log.data(entry)
                    for at in range(0, len(data), SECTOR):
                        if rng.random() < 0.5:
                            file.seek(entry[2] + at)
                            file.write(data[at : at + SECTOR])
        return f"{len(tail)} {fate}"


def rng_of(seed, *more):
    return random.Random("/".join(map(str, (seed, *more))))
