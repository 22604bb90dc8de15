"""Bits rot on the drives of a whole service: `make rot`.

A volume is filled. Then, round by round, the service is stopped, bits flip in the file of one
server's drive, at so many for each 100,000 blocks, and the service is started again. Everything is
read and compared, before a scrub or after it. In two rounds of three the bits are of data of the
volume: every flip must be found and repaired. In the third they are of anything else that is not
empty (journal, tables, what was freed), which may cost the replica its standing: then it is filled
again. Either way another scrub must find nothing, and each block must be on each drive. At last the same
block rots on both drives: it alone must be an error.
"""

import argparse
import os
import random
import struct
import sys
import time

from nbd import Nbd, NbdError
from roles import Roles
from service import wait_for

BLOCK = 4096
REQUEST = 256 * BLOCK
MARK = b"rOt\x01"
# Of what holds no data of the volume: it is little, and one flip would say little.
ELSEWHERE_MIN = 8


def content(block):
    """Says in every 32 bytes which block it is."""
    return struct.pack("<4sIQQQ", MARK, 7, block, block * 0x9E3779B97F4A7C15 & (1 << 64) - 1, block) * (BLOCK // 32)


def used(path):
    """Offset and content of each block of a sparse file that is not empty."""
    with open(path, "rb") as file:
        end, at = os.fstat(file.fileno()).st_size, 0
        while at < end:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                return
            stop = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            at -= at % BLOCK
            while at < stop:
                data = os.pread(file.fileno(), min(1 << 20, stop - at), at)
                for offset in range(0, len(data), BLOCK):
                    block = data[offset : offset + BLOCK]
                    if block.count(0) != len(block):
                        yield at + offset, block
                at += len(data)


def hasty(name, text):
    """Servers that scrub as fast as they can."""
    return f"scrub_mib = 1000\n{text}" if name.startswith("server") else text


class Rot:
    def __init__(self, mib, per, seed):
        self.per, self.rng = per, random.Random(seed)
        self.blocks = mib << 8
        gib = -(-mib // 1024)
        self.wrong = []
        flags = ("--zones", "a", "--servers-per-zone", "2", "--ssd-gib", str(2 * gib), "--remirror-delay", "600")
        self.service = Roles(*flags, change=hasty).start()
        self.volume = self.service.create(size=gib)
        self.service.attach(self.volume)
        nbd = self.open()
        for first in range(0, self.blocks, 256):
            nbd.write(first * BLOCK, b"".join(content(block) for block in range(first, first + 256)))
        nbd.close()

    def open(self):
        uri = next(u for u in self.service.volume(self.volume)["attachments"][0]["nbd_uris"] if "unix" in u)
        return Nbd(uri, patience=60)

    def servers(self):
        """Of primary and mirror. On a busy machine a mirror may just have been dropped as silent."""
        self.service.in_sync(self.volume, 300)
        return [self.service.replica(self.volume, role)["server"] for role in ("primary", "mirror")]

    def drive(self, server):
        return next(p for p in (self.service.dir / "drives" / server).glob("*ssd*") if p.is_file())

    def restart(self):
        self.service.start_roles()
        self.service.in_sync(self.volume, 300)

    def flip(self, server, blocks=None, of_data=True):
        """Returns how many bits it flipped: of data of the volume (of these blocks), or of anything else."""
        path = self.drive(server)
        data, elsewhere = {}, []
        for offset, block in used(path):
            if block[:4] == MARK:
                data[offset] = struct.unpack_from("<Q", block, 8)[0]
            else:
                elsewhere.append(offset)
        count = max(1, len(data) * self.per // 100_000)
        if blocks is not None:
            chosen = [offset for offset, block in data.items() if block in blocks]
            assert len(chosen) >= len(blocks), "every block has its place on the drive"
        elif of_data:
            chosen = self.rng.sample(sorted(data), count)
        else:
            chosen = self.rng.sample(elsewhere, min(len(elsewhere), max(ELSEWHERE_MIN, count)))
        with open(path, "r+b") as file:
            for offset in chosen:
                at = offset + self.rng.randrange(BLOCK)
                byte = os.pread(file.fileno(), 1, at)[0] ^ 1 << self.rng.randrange(8)
                os.pwrite(file.fileno(), bytes([byte]), at)
            os.fsync(file.fileno())
        return len(chosen)

    def read_all(self, lost=()):
        """Reads everything; blocks that are delivered wrong, or not at all without being `lost`, are noted."""
        nbd = self.open()
        step = 256
        for first in range(0, self.blocks, step):
            hit = [block for block in lost if first <= block < first + step]
            spans = [(first, step)] if not hit else [(block, 1) for block in range(first, first + step)]
            for at, count in spans:
                try:
                    found = nbd.read(at * BLOCK, count * BLOCK)
                except NbdError as error:
                    if at not in lost:
                        self.wrong.append(f"{count} blocks from {at}: {error}")
                    continue
                if at in lost:
                    self.wrong.append(f"block {at} was delivered, though no replica holds it")
                expected = b"".join(content(block) for block in range(at, at + count))
                if found != expected:
                    self.wrong.append(f"other content in {count} blocks from {at}")
        nbd.close()

    def counts(self, server):
        """Of bad blocks since the server was started: found, repaired, lost."""
        shown = next(s for s in self.service.pliant("server", "list")["servers"] if s["server"] == server)
        usage = next(d for d in shown["drives"] if d["drive"] == "ssd")["usage"]
        return tuple(usage[f"bad_blocks_{what}"] for what in ("found", "repaired", "lost"))

    def scrub(self):
        shown = self.service.pliant("volume", "scrub", self.volume, "--wait")
        return tuple(shown[f"bad_blocks_{what}"] for what in ("found", "repaired", "lost"))

    def round(self, number):
        server, of_data = self.servers()[number % 2], number % 3 != 2
        self.service.stop()
        flips = self.flip(server, of_data=of_data)
        self.restart()
        if number % 2 == 0:
            self.read_all()
        first, second = self.scrub(), self.scrub()
        if number % 2:
            self.read_all()
        if of_data:
            wait_for(lambda: self.counts(server)[1] >= flips, 30, f"{flips} repairs counted")
        total = self.counts(server)
        where = "of data" if of_data else "of anything else"
        print(f"round {number}: {server}: {flips} flips {where}; {total[0]} found, {total[1]} repaired", flush=True)
        if total[0] != total[1] or total[2] or second != (0, 0, 0):
            self.wrong.append(f"round {number}: counted {total}, scrubs {first}, {second}")
        left = self.still_rotten()
        if left:
            self.wrong.append(f"round {number}: {left} blocks are not on both drives")

    def still_rotten(self):
        """Blocks of the volume that the drive of some server does not hold, good, anywhere."""
        self.service.stop()
        found = 0
        for server in self.service_servers:
            held = set()
            for _, block in used(self.drive(server)):
                if block[:4] == MARK:
                    number = struct.unpack_from("<Q", block, 8)[0]
                    if block == content(number):
                        held.add(number)
            found += self.blocks - len(held)
        self.restart()
        return found

    def both(self):
        """The same block on both drives, and some others on one."""
        bad = self.rng.randrange(self.blocks)
        others = {block for block in self.rng.sample(range(self.blocks), 5) if block != bad}
        servers = self.servers()
        self.service.stop()
        self.flip(servers[0], {bad, *others})
        self.flip(servers[1], {bad})
        self.restart()
        self.read_all(lost={bad})
        found, repaired, lost = self.scrub()
        print(f"both: block {bad} is an error; scrub found {found}, repaired {repaired}, lost {lost}", flush=True)
        nbd = self.open()
        nbd.write(bad * BLOCK, content(bad))
        nbd.close()
        self.read_all()
        if self.scrub() != (0, 0, 0):
            self.wrong.append("both: not healed by a write")

    def run(self, rounds):
        self.service_servers = self.servers()
        for number in range(rounds):
            self.round(number)
        self.both()
        self.service.destroy()
        return self.wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=4096, help="of data on the volume")
    parser.add_argument("--per", type=int, default=1, help="flips for each 100,000 blocks")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    began = time.monotonic()
    wrong = Rot(arguments.mib, arguments.per, arguments.seed).run(arguments.rounds)
    print(*wrong, sep="\n")
    print(f"{arguments.rounds} rounds of rot, {len(wrong)} wrong; {time.monotonic() - began:.0f} s")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
