"""`make bench`: ratios within one run, because machines are noisy and ratios are not.

io       4 KiB random reads and writes at depth 1 and 32, over NBD, beside qemu-nbd serving a file
         on the same disk; targets in turn within a round, median over rounds
stalls   what a program waits at most at a planned cut-over and at a failover, N times each
migrate  bytes per second of a migration, beside cp of the same bytes
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent / "e2e"))
from service import ROOT, Load, Service, run, wait_for  # noqa: E402

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


def bench_stalls(count):
    service = Service("--remirror-delay", "5").start()
    volume = service.create(size=4, volume_type="io2", Iops=4000)
    uri = next(u for u in service.attach(volume)["nbd_uris"] if u.startswith("nbd+unix"))
    found = {"cut-over": [], "failover": []}
    for index in range(count):
        service.in_sync(volume)
        load = Load(uri, length=64 << 20, workers=4, rate=800)
        service.modify(volume, zone=service.zone("b" if index % 2 == 0 else "a"))
        service.modified(volume)
        found["cut-over"].append(load.stop()["longest_ms"])
    for _ in range(count):
        before = service.in_sync(volume)
        load = Load(uri, length=64 << 20, workers=4, rate=800)
        time.sleep(0.5)
        service.kill(service.replica(volume, "primary")["server"])
        wait_for(lambda b=before: service.volume(volume)["epoch"] > b["epoch"], 20, "failover")
        time.sleep(0.5)
        found["failover"].append(load.stop()["longest_ms"])
    for name, stalls in found.items():
        print(f"stall at {name}: p50 {statistics.median(stalls):.0f} ms, max {max(stalls)} ms of {count}: {stalls}")
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["io", "stalls", "migrate"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--gib", type=int, default=4)
    arguments = parser.parse_args()
    if "io" in arguments.parts:
        bench_io(arguments.rounds, arguments.seconds)
    if "stalls" in arguments.parts:
        bench_stalls(arguments.count)
    if "migrate" in arguments.parts:
        bench_migrate(arguments.gib)


if __name__ == "__main__":
    main()
