"""`make bench`: ratios within one run, because machines are noisy and ratios are not.

io       4 KiB random reads and writes at depth 1 and 32, over NBD, beside qemu-nbd serving a file
         on the same disk; targets in turn within a round, median over rounds
stalls   what a program waits at most at a planned switch, when the primary dies, and when it hangs, N times
         each, and while the manager is away
migrate  bytes per second of a migration, beside cp of the same bytes
engine   one engine on one drive beside the same disk without: durable 4 KiB writes at depth 32 beside
         groups of 32 writes and an fdatasync, reads at depth 32, 1 MiB writes in sequence; in one
         process each, with nothing between engine and driver; then a minute of writes without a
         break, and which goals are met; about ten minutes
hdd      one engine on one emulated hard disk, as `pliant up` has it: 4 KiB reads in sequence one at a
         time, alone and beside 8 and 32 reads anywhere, and 32 reads anywhere; about a minute. It
         measures what the engine asks of such a disk, no disk
idle     memory and CPU of a server with 5,000 replicas that nobody uses
restart  how soon a server with 1,000 replicas and 1 TiB of mapped extents serves again
"""

import argparse
import concurrent.futures
import json
import math
import os
import pathlib
import random
import re
import signal
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent / "e2e"))
from nbd import Nbd  # noqa: E402
from roles import Roles  # noqa: E402
from service import BINARY, ROOT, Load, Service, assert_clean, run, wait_for  # noqa: E402

SIZE = 1 << 30


def cpu_seconds(pids):
    total = 0
    for pid in pids:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def fio(uri, rw, depth, seconds):
    out = run("fio", "--name=b", "--ioengine=nbd", f"--uri={uri}", f"--rw={rw}", "--bs=4k", f"--iodepth={depth}",
              f"--size={SIZE}", "--time_based", f"--runtime={seconds}", "--ramp_time=1", "--randrepeat=0",
              "--output-format=json", cwd=ROOT / "target")  # fmt: skip
    job = json.loads(out[out.index("{") :])["jobs"][0]["read" if "read" in rw else "write"]
    return {"iops": job["iops"], "p50_us": job["clat_ns"]["percentile"]["50.000000"] / 1e3,
            "p99_us": job["clat_ns"]["percentile"]["99.000000"] / 1e3, "ios": job["total_ios"]}  # fmt: skip


def fill(uri):
    run("fio", "--name=fill", "--ioengine=nbd", f"--uri={uri}", "--rw=write", "--bs=1m", "--iodepth=4",
        f"--size={SIZE}", cwd=ROOT / "target")  # fmt: skip


def bench_io(rounds, seconds):
    service = Service("--ssd-iops", "200000", "--ssd-throughput", "4000").start()
    volume = service.create(size=100, volume_type="io2", Iops=100_000)
    uri = next(u for u in service.attach(volume)["nbd_uris"] if u.startswith("nbd+unix"))
    servers = {r["server"] for r in service.volume(volume)["replicas"]}
    pids = [service.pid(name) for name in [*servers, "node-a"]]
    image, socket = ROOT / "target/bench.img", ROOT / "target/bench.sock"
    run("truncate", "-s", SIZE, image)
    qemu = subprocess.Popen(["qemu-nbd", "-f", "raw", "-k", socket, "-t", "-e", "8", "--cache=none", "--aio=native",
                             "-x", "b", image])  # fmt: skip
    peer = f"nbd+unix:///b?socket={socket}"
    try:
        wait_for(socket.exists, 10, "qemu-nbd")
        fill(uri)
        fill(peer)
        print("| job | Pliant IOPS (2 flushed copies) | qemu-nbd IOPS (1 unflushed) | ratio | Pliant p50/p99 µs | "
              "qemu p50/p99 µs | server CPU-s/100k: Pliant, qemu |")  # fmt: skip
        print("|---|---|---|---|---|---|---|")
        for rw in ["randwrite", "randread"]:
            for depth in [1, 32]:
                rows = []
                for index in range(rounds):
                    order = [("pliant", uri, pids), ("qemu", peer, [qemu.pid])]
                    row = {}
                    for name, target, owners in order if index % 2 == 0 else reversed(order):
                        before = cpu_seconds(owners)
                        row[name] = fio(target, rw, depth, seconds)
                        # The ramp's operations cost CPU too; scale by time.
                        cpu = (cpu_seconds(owners) - before) * seconds / (seconds + 1)
                        row[name]["cpu"] = cpu / row[name]["ios"] * 1e5
                    rows.append(row)
                median = lambda who, key: statistics.median(r[who][key] for r in rows)  # noqa: E731
                ratio = statistics.median(r["pliant"]["iops"] / r["qemu"]["iops"] for r in rows)
                print(f"| {rw} 4K QD{depth} | {median('pliant', 'iops'):.0f} | {median('qemu', 'iops'):.0f} | "
                      f"{ratio:.2f} | {median('pliant', 'p50_us'):.0f} / {median('pliant', 'p99_us'):.0f} | "
                      f"{median('qemu', 'p50_us'):.0f} / {median('qemu', 'p99_us'):.0f} | "
                      f"{median('pliant', 'cpu'):.1f}, {median('qemu', 'cpu'):.1f} |", flush=True)  # fmt: skip
    finally:
        qemu.terminate()
        qemu.wait()
        image.unlink()
        service.destroy()


def stall(service, uri, strike):
    """What a program waits at most while `strike` is made, in milliseconds; it sees no error."""
    load = Load(uri, length=64 << 20, workers=4, rate=800)
    time.sleep(0.5)
    strike()
    time.sleep(0.5)
    report = load.stop()
    assert_clean(report)
    return report["longest_ms"]


def told(name, stalls, goals):
    """One line of JSON, with what is wanted and whether it is met."""
    ordered = sorted(stalls)
    found = {"p50": statistics.median(ordered), "p99": ordered[math.ceil(0.99 * len(ordered)) - 1], "max": ordered[-1]}
    met = all(found[key] <= goal for key, goal in goals.items())
    print(json.dumps({"stall": name, "trials": len(stalls), **{f"{k}_ms": v for k, v in found.items()},
                      "goal_ms": goals, "met": met}), flush=True)  # fmt: skip


def bench_stalls(count):
    service = Service("--remirror-delay", "5").start()
    volume = service.create(size=4, volume_type="io2", Iops=4000)
    uri = next(u for u in service.attach(volume)["nbd_uris"] if u.startswith("nbd+unix"))

    def primary():
        return service.replica(volume, "primary")["server"]

    def until_another(before):
        wait_for(lambda: service.volume(volume)["epoch"] > before["epoch"], 30, "failover")

    def moves(index):
        service.modify(volume, zone=service.zone("b" if index % 2 == 0 else "a"))
        service.modified(volume)

    def dies(_):
        before = service.in_sync(volume)
        service.kill(primary())
        until_another(before)

    def hangs(_):
        before = service.in_sync(volume)
        pid = service.kill(primary(), signal.SIGSTOP)
        try:
            until_another(before)
        finally:
            os.kill(pid, signal.SIGCONT)

    kinds = [
        ("planned switch, while both replicas move", moves, {"p99": 200}),
        ("the primary's process dies", dies, {"p50": 150, "p99": 1000}),
        ("the primary's process hangs (SIGSTOP)", hangs, {"p99": 5000}),
    ]
    for name, strike, goals in kinds:
        stalls = []
        for index in range(count):
            service.in_sync(volume)
            stalls.append(stall(service, uri, lambda s=strike, i=index: s(i)))
        told(name, stalls, goals)

    def without_manager():
        pid = service.kill("manager", signal.SIGSTOP)
        try:
            time.sleep(60)
        finally:
            os.kill(pid, signal.SIGCONT)

    service.in_sync(volume)
    # What the machine itself makes programs wait is in there, as it is without.
    told("a minute of load and nothing else", [stall(service, uri, lambda: time.sleep(60))], {})
    told("the manager away for a minute", [stall(service, uri, without_manager)], {"max": 200})
    service.destroy()


def bench_migrate(gib):
    service = Service("--remirror-delay", "5", "--ssd-throughput", "4000").start()
    volume = service.create(size=max(8, gib), volume_type="io2", Iops=8000)
    uri = next(u for u in service.attach(volume)["nbd_uris"] if u.startswith("nbd+unix"))
    source = ROOT / "target/bench-source.img"
    with open(source, "wb") as file:
        for _ in range(gib * 16):
            file.write(os.urandom(64 << 20))
    run("nbdcopy", source, uri)
    run("sync")
    began = time.monotonic()
    run("dd", f"if={source}", "of=" + str(ROOT / "target/bench-copy.img"), "bs=1M", "iflag=direct", "oflag=direct",
        "conv=fdatasync")  # fmt: skip
    copied = time.monotonic() - began
    (ROOT / "target/bench-copy.img").unlink()
    began = time.monotonic()
    run("cp", "--sparse=never", "--reflink=never", source, ROOT / "target/bench-copy.img")
    run("sync")
    cp = time.monotonic() - began
    began = time.monotonic()
    service.modify(volume, zone=service.zone("b"))
    ended = service.modified(volume, 600)
    moved = time.monotonic() - began
    mib = gib * 1024
    print(f"migration of {mib} MiB, two replicas moved one after the other: {moved:.1f} s, "
          f"{2 * mib / moved:.0f} MiB/s of copying ({ended['bytes_moved'] >> 20} MiB moved); "
          f"cp and sync of the same bytes: {mib / cp:.0f} MiB/s; dd direct: {mib / copied:.0f} MiB/s")  # fmt: skip
    for path in ["bench-source.img", "bench-copy.img"]:
        (ROOT / "target" / path).unlink(missing_ok=True)
    service.destroy()


class Bench:
    """`pliant bench` in one of its roles: does the jobs it is told, when it is told."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen([BINARY, "bench", *map(str, arguments)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)  # fmt: skip

    def answer(self):
        line = self.process.stdout.readline()
        assert line, "pliant bench ended"
        return json.loads(line)

    def job(self, kind, depth, seconds):
        self.process.stdin.write(f"{kind} {depth} {seconds}\n")
        self.process.stdin.flush()
        return self.answer()

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def stolen():
    """Seconds that other guests of this machine's host took from it."""
    return int(pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[8]) / os.sysconf("SC_CLK_TCK")


def interval(values):
    """Median, and the interval that holds it in 95 of 100 cases, from the order of the values."""
    values, n, k = sorted(values), len(values), 0
    while 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n <= 0.05:
        k += 1
    return statistics.median(values), values[max(0, k - 1)], values[n - max(1, k)]


def rounds_of(targets, job, rounds, seconds):
    """Each target does the job once a round, in an order that changes; rounds in which the machine was
    disturbed do not count, but not more than half of them are left out."""
    kept, left_out = [], 0
    while len(kept) < rounds:
        order, found = random.sample(list(targets), len(targets)), {}
        for name in order:
            before, worked = stolen(), busy()
            found[name] = targets[name].job(*job, seconds)
            found[name]["stolen"] = (stolen() - before) / seconds
            found[name]["machine_per_100k"] = (busy() - worked) / found[name]["operations"] * 1e5
        if max(one["stolen"] for one in found.values()) > 0.1 and left_out < rounds:
            left_out += 1
        else:
            kept.append(found)
    return kept


def busy():
    """Seconds that this machine's processors have worked, whoever for: kernel workers are in no process."""
    fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return sum(int(fields[i]) for i in (1, 2, 3, 6, 7)) / os.sysconf("SC_CLK_TCK")


ENGINE_JOBS = {
    "durable 4K writes, depth 32": (("randwrite", 32), 0.8),
    "4K reads, depth 32": (("randread", 32), 0.85),
    "1M writes in sequence, depth 8": (("write", 8), 0.8),
}
CPU_GOAL, WRITTEN_GOAL = 1.5, 2.3


def verdict(what, found, goal, at_least):
    met = found >= goal if at_least else found <= goal
    print(f"{'PASS ' if met else 'short'} {what}: {found:.2f}, to be at {'least' if at_least else 'most'} {goal}", flush=True)


def bench_engine(rounds, seconds, driver):
    drive, file = ROOT / "target/bench-drive", ROOT / "target/bench-raw"
    targets = {
        "engine": Bench("engine", "--drive", drive, "--driver", driver),
        "raw": Bench("raw", "--file", file),
    }
    try:
        for target in targets.values():
            target.answer()
        print("| job | engine /s | raw /s | ratio | engine p50/p99 µs | raw p50/p99 µs | CPU-s/100k: engine, raw | "
              "ratio | the machine's: engine, raw | written per byte |")  # fmt: skip
        print("|---|---|---|---|---|---|---|---|---|---|")
        goals = []
        for name, (job, goal) in ENGINE_JOBS.items():
            for target in targets.values():
                target.job(*job, 1)
            kept = rounds_of(targets, job, rounds, seconds)
            of = lambda who, key, kept=kept: statistics.median(r[who][key] for r in kept)  # noqa: E731
            ratio = lambda key, kept=kept: interval([r["engine"][key] / r["raw"][key] for r in kept])  # noqa: E731
            per_second, cpu = ratio("per_second"), ratio("cpu_per_100k")
            print(f"| {name} | {of('engine', 'per_second'):.0f} | {of('raw', 'per_second'):.0f} | "
                  f"{per_second[0]:.2f} [{per_second[1]:.2f}, {per_second[2]:.2f}] | "
                  f"{of('engine', 'p50_us'):.0f} / {of('engine', 'p99_us'):.0f} | "
                  f"{of('raw', 'p50_us'):.0f} / {of('raw', 'p99_us'):.0f} | "
                  f"{of('engine', 'cpu_per_100k'):.2f}, {of('raw', 'cpu_per_100k'):.2f} | "
                  f"{cpu[0]:.2f} [{cpu[1]:.2f}, {cpu[2]:.2f}] | "
                  f"{of('engine', 'machine_per_100k'):.2f}, {of('raw', 'machine_per_100k'):.2f} | "
                  f"{of('engine', 'written_per_byte'):.2f} |",
                  flush=True)  # fmt: skip
            goals += [(f"{name}, beside raw", per_second[0], goal, True), (f"{name}, CPU beside raw", cpu[0], CPU_GOAL, False)]
            if job[0] == "randwrite":
                goals.append((f"{name}, written per byte", of("engine", "written_per_byte"), WRITTEN_GOAL, False))
        kind, depth = ENGINE_JOBS["durable 4K writes, depth 32"][0]
        before = targets["raw"].job(kind, depth, 20)["per_second"]
        minute = targets["engine"].job(kind, depth, 60)
        after = targets["raw"].job(kind, depth, 20)["per_second"]
        print(f"a minute of durable 4K writes without a break: {minute['per_second']:.0f} /s, {minute['written_per_byte']:.2f} "
              f"written per byte; raw before and after it: {before:.0f}, {after:.0f} /s")  # fmt: skip
        goals.append(("a minute of durable 4K writes, beside raw", minute["per_second"] * 2 / (before + after), 0.8, True))
        for goal in goals:
            verdict(*goal)
    finally:
        for target in targets.values():
            target.stop()
        for path in (drive, file):
            path.unlink(missing_ok=True)


HDD_JOBS = {
    "4K reads in sequence": ("read", 1),
    "as that, beside 8 reads anywhere": ("readbeside", 8),
    "as that, beside 32": ("readbeside", 32),
    "4K reads anywhere, depth 32": ("randread", 32),
}


def bench_hdd(seconds):
    drive = ROOT / "target/bench-drive"
    target = Bench("engine", "--media", "hdd", "--drive", drive, "--drive-gib", 2, "--volume-gib", 1)
    try:
        target.answer()
        print("| job | /s | p50/p99 µs |")
        print("|---|---|---|")
        for name, job in HDD_JOBS.items():
            found = target.job(*job, seconds)
            print(f"| {name} | {found['per_second']:.1f} | {found['p50_us']:.0f} / {found['p99_us']:.0f} |", flush=True)
    finally:
        target.stop()
        drive.unlink(missing_ok=True)


def drives(count, gib, replicas):
    """Turns a server's configuration into one with that many large SSD drives."""

    def change(name, text):
        if not name.startswith("server"):
            return text
        folder = pathlib.Path(re.search(r'path = "(.*)/ssd"', text)[1])
        tables = [
            f'\n[[drive]]\nname = "ssd{n}"\nmedia = "ssd"\npath = "{folder}/ssd{n}"\nsize_gib = {gib}\n'
            f"journal_mib = 64\nreplicas_max = {replicas}\niops = 100000000\nthroughput_mib = 10000000\n"
            for n in range(count)
        ]
        return text[: text.index("[[drive]]")] + "".join(tables)

    return change


def create_many(service, count):
    """Volumes of 1 GiB; waits until all can be attached."""
    began, ec2 = time.monotonic(), service.boto()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        make = lambda _: ec2.create_volume(AvailabilityZone=service.zone("a"), Size=1, VolumeType="gp3")  # noqa: E731
        ids = [answer["VolumeId"] for answer in pool.map(make, range(count))]
    ready = lambda: all(v["state"] == "available" for v in service.pliant("volume", "list")["volumes"])  # noqa: E731
    wait_for(ready, 300, f"{count} volumes available")
    print(f"{count} volumes of two replicas made in {time.monotonic() - began:.0f} s", flush=True)
    return ids


def resident_mib(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def two_servers(change):
    return Roles("--zones", "a", "--servers-per-zone", "2", "--remirror-delay", "3600", change=change).start()


def bench_idle(count, seconds=60):
    service = two_servers(drives(2, count, 4096))
    empty = resident_mib(service.pid("server-a-1"))
    create_many(service, count)
    time.sleep(5)
    pid = service.pid("server-a-1")
    before = cpu_seconds([pid])
    time.sleep(seconds)
    used = (cpu_seconds([pid]) - before) / seconds
    print(f"a server with {count} idle replicas: {resident_mib(pid):.0f} MiB resident ({empty:.0f} with none), "
          f"{used * 100:.2f} % of a core over {seconds} s")  # fmt: skip
    service.destroy()


def bench_restart(gib):
    size = gib + gib // 20 + 4
    service = two_servers(drives(1, size, 2048))
    ids = create_many(service, gib)
    uri = next(u for u in service.attach(ids[0])["nbd_uris"] if u.startswith("nbd+unix"))
    primary = service.replica(ids[0], "primary")["server"]
    service.stop()
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        lay = lambda server: run(BINARY, "bench", "lay", "--drive", service.dir / "drives" / server / "ssd0",  # noqa: E731
                                 "--size-gib", size, "--journal-mib", 64, "--replicas-max", 2048, "--gib-each", 1)  # fmt: skip
        laid = [json.loads(answer)["bytes"] >> 30 for answer in pool.map(lay, service.servers())]
    print(f"{laid} GiB mapped in {time.monotonic() - began:.0f} s", flush=True)
    times = []
    for _ in range(3):
        for name in ("manager", "node-a"):
            service.start_role(name)
        began = time.monotonic()
        for name in service.servers():
            service.start_role(name)
        nbd = Nbd(uri, patience=120)
        nbd.read(0, 1 << 20)
        times.append(time.monotonic() - began)
        resident = resident_mib(service.pid(primary))
        nbd.close()
        service.stop()
    print(f"{gib} GiB mapped in {gib} replicas: a read is answered {', '.join(f'{t:.2f}' for t in times)} s after both "
          f"servers were started; {resident:.0f} MiB resident")  # fmt: skip
    service.destroy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["engine", "io", "stalls", "migrate"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--gib", type=int, default=4)
    parser.add_argument("--driver", default="auto", help="of the part `engine`")
    parser.add_argument("--replicas", type=int, default=5000, help="of the part `idle`")
    parser.add_argument("--mapped", type=int, default=1024, help="GiB of the part `restart`, one for each replica")
    arguments = parser.parse_args()
    if "engine" in arguments.parts:
        bench_engine(max(11, arguments.rounds), arguments.seconds, arguments.driver)
    if "hdd" in arguments.parts:
        bench_hdd(arguments.seconds)
    if "idle" in arguments.parts:
        bench_idle(arguments.replicas)
    if "restart" in arguments.parts:
        bench_restart(arguments.mapped)
    if "io" in arguments.parts:
        bench_io(arguments.rounds, arguments.seconds)
    if "stalls" in arguments.parts:
        bench_stalls(arguments.count)
    if "migrate" in arguments.parts:
        bench_migrate(arguments.gib)


if __name__ == "__main__":
    main()
