"""PostgreSQL on a file system on the kernel block device, while its volume changes under it."""

import os
import pathlib
import pwd
import subprocess
import tempfile
import time

import pytest

from service import ROOT, run, wait_for

PG = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a kernel block device needs root")


class Postgres:
    def __init__(self, mount, port):
        self.bin, self.data, self.port = PG[0], mount / "pg", port
        self.log = ROOT / f"target/e2e-pg-{port}.log"
        self.log.unlink(missing_ok=True)
        self.log.touch()
        owner = pwd.getpwnam("postgres")
        os.chown(self.log, owner.pw_uid, owner.pw_gid)
        self.data.mkdir()
        os.chown(self.data, owner.pw_uid, owner.pw_gid)
        self.sql_dir = ROOT / "target"

    def tool(self, name, *arguments, **options):
        return run("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups",
                   self.bin / name, *arguments, cwd="/", **options)  # fmt: skip

    def start(self):
        self.tool("initdb", "-D", self.data, "-A", "trust", "-k")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c checkpoint_timeout=30s"
        self.tool("pg_ctl", "-D", self.data, "-l", self.log, "-o", options, "-w", "start")

    def stop(self):
        self.tool("pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop")

    def connection(self):
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]


def pgbench(postgres, seconds):
    return subprocess.Popen(
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", str(postgres.bin / "pgbench"),
         *postgres.connection(), "-c", "4", "-T", str(seconds), "-P", "5", "postgres"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/",
    )  # fmt: skip


def has_capability(bit):
    effective = next(r for r in open("/proc/self/status") if r.startswith("CapEff")).split()[1]
    return bool(int(effective, 16) >> bit & 1)


@pytest.mark.parametrize("filesystem", ["xfs", "ext4"])
def test_postgresql_never_notices(service, filesystem):
    volume = service.create(size=4, volume_type="standard")
    attachment = service.attach(volume, kernel_device=True)
    device = attachment["kernel_device"]
    assert device, "no kernel device was made"
    mount = pathlib.Path(tempfile.mkdtemp(prefix="pliant-mnt-"))
    mount.chmod(0o755)  # the postgres user must reach it
    if filesystem == "xfs":
        run("mkfs.xfs", "-q", "-f", device)
    else:
        run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", device)
    run("mount", device, mount)
    postgres = Postgres(mount, 54320 if filesystem == "xfs" else 54321)
    mounted = True
    try:
        postgres.start()
        postgres.tool("pgbench", *postgres.connection(), "-q", "-i", "-s", "5", "postgres")
        bench = pgbench(postgres, 45)

        service.modify(volume, size=8)
        service.modified(volume)
        wait_for(lambda: int(run("blockdev", "--getsize64", device)) == 8 << 30, 20, "the new size on the device")
        if filesystem == "xfs":
            run("xfs_growfs", mount)
        online = filesystem == "xfs" or has_capability(24)
        if filesystem == "ext4" and online:
            run("resize2fs", device)
        print(f"{filesystem}: grown {'online' if online else 'unmounted, for want of CAP_SYS_RESOURCE'}")

        service.modify(volume, type="gp3")
        service.modified(volume, 180)
        service.modify(volume, zone=service.zone("b"))
        service.modified(volume, 180)
        service.kill(service.replica(volume, "primary")["server"])
        out, _ = bench.communicate(timeout=120)
        assert bench.returncode == 0, out
        service.in_sync(volume)
        postgres.tool("pg_amcheck", *postgres.connection(), "--all", "--heapallindexed", "--install-missing")
        postgres.stop()
        run("umount", mount)
        mounted = False
        if filesystem == "ext4" and not online:
            run("e2fsck", "-f", "-y", device)
            run("resize2fs", device)
        if filesystem == "xfs":
            run("xfs_repair", "-n", device)
        else:
            run("e2fsck", "-f", "-n", device)
        run("mount", device, mount)
        mounted = True
        assert os.statvfs(mount).f_blocks * os.statvfs(mount).f_frsize > 7 << 30
        bad = [r for r in postgres.log.read_text().splitlines() if any(w in r for w in ("ERROR", "PANIC", "FATAL"))]
        assert not bad, bad
    finally:
        if (postgres.data / "postmaster.pid").exists():
            subprocess.run(["kill", "-QUIT", (postgres.data / "postmaster.pid").read_text().split()[0]], check=False)
            time.sleep(1)
        if mounted:
            subprocess.run(["umount", "-l", mount], check=False)
        mount.rmdir()
        service.detach(volume)
        service.boto().delete_volume(VolumeId=volume)
