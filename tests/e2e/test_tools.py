"""Block tools that know nothing of Pliant work on a volume, over unix socket and TCP."""

import json
import os

import pytest

from service import ROOT, run


@pytest.fixture(scope="module")
def export(service):
    volume = service.create(size=4, volume_type="io2", Iops=4000)
    attachment = service.attach(volume)
    uris = attachment["nbd_uris"]
    yield {
        "volume": volume,
        "unix": next(u for u in uris if u.startswith("nbd+unix")),
        "tcp": next(u for u in uris if u.startswith("nbd://")),
    }
    service.detach(volume)
    service.boto().delete_volume(VolumeId=volume)


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_nbdinfo_sees_size_and_abilities(export, transport):
    info = json.loads(run("nbdinfo", "--json", export[transport]))
    assert info["structured"] is True
    found = info["exports"][0]
    assert found["export-size"] == 4 << 30
    for ability in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"]:
        assert found[ability], ability
    assert not found["is_read_only"]
    names = [e["export-name"] for e in json.loads(run("nbdinfo", "--list", "--json", export[transport]))["exports"]]
    assert export["volume"] in names


def test_qemu_io_patterns_flush_trim_and_zeroes(export):
    uri = export["unix"]
    run(
        "qemu-io", "-f", "raw", uri,
        "-c", "write -P 0xab 1M 3M", "-c", "write -f -P 0xcd 513 1000", "-c", "flush",
        "-c", "discard 2M 64k", "-c", "write -z 3M 4097",
        "-c", "read -P 0xab 1M 1M", "-c", "read -P 0 2M 64k", "-c", "read -P 0xcd 513 1000",
        "-c", "read -P 0 3M 4097",
        "-c", "read -P 0xab 3149825 4095",
    )  # fmt: skip


def test_what_was_never_written_is_a_hole(service, export):
    run("qemu-io", "-f", "raw", export["unix"], "-c", "discard 0 1G", "-c", "discard 1G 1G",
        "-c", "write -P 1 1G 64k")  # fmt: skip
    runs = json.loads(run("nbdinfo", "--map", "--json", export["unix"]))
    data = [(r["offset"], r["length"]) for r in runs if r["type"] == 0 and r["offset"] < 2 << 30]
    assert data == [(1 << 30, 64 << 10)]


def test_nbdcopy_in_and_out_is_byte_identical(export):
    size = 2 << 30
    source, back = ROOT / "target/e2e-source.img", ROOT / "target/e2e-back.img"
    try:
        with open(source, "wb") as file:
            for _ in range(size // (64 << 20)):
                file.write(os.urandom(32 << 20))
                file.write(b"\0" * (16 << 20))
                file.write(b"pliant!!" * (2 << 20))
        run("nbdcopy", "--flush", source, export["tcp"])
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, export["unix"])
        run("nbdcopy", "--request-size=1048576", export["unix"], back)
        with open(source, "rb") as a, open(back, "rb") as b:
            while chunk := a.read(16 << 20):
                assert chunk == b.read(len(chunk))
    finally:
        source.unlink(missing_ok=True)
        back.unlink(missing_ok=True)


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_fio_verifies_what_it_wrote(export, transport):
    out = run(
        "fio", "--name=verify", "--ioengine=nbd", f"--uri={export[transport]}", "--rw=randrw", "--bs=4k",
        "--iodepth=32", "--size=256m", "--io_size=64m", "--verify=crc32c", "--verify_fatal=1", "--verify_async=0", "--verify_state_save=0",
        "--randrepeat=1", "--output-format=json",
        cwd=ROOT / "target",
    )  # fmt: skip
    job = json.loads(out[out.index("{") :])["jobs"][0]
    assert job["error"] == 0 and job["write"]["total_ios"] > 0


def test_two_connections_see_each_other(export):
    """A completed write is visible on every connection: what multi-conn promises."""
    run("qemu-io", "-f", "raw", export["tcp"], "-c", "write -P 0x11 40M 64k")
    run("qemu-io", "-f", "raw", export["unix"], "-c", "read -P 0x11 40M 64k")


def test_garbage_closes_only_its_own_connection(service, export):
    import socket
    import urllib.parse

    port = urllib.parse.urlparse(export["tcp"]).port
    for garbage in [b"\xff" * 4096, b"GET / HTTP/1.0\r\n\r\n", bytes(range(256)) * 16]:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
            raw.recv(18)
            raw.sendall(garbage)
            while raw.recv(4096):
                pass
    run("qemu-io", "-f", "raw", export["tcp"], "-c", "write -P 0x22 41M 4k", "-c", "read -P 0x22 41M 4k")
