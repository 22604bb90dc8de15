"""The rate that was bought is the rate that is had, from the second it was asked for."""

import json
import subprocess
import time

import botocore.exceptions
import pytest

from service import ROOT, wait_for


def flood(uri, seconds):
    """fio at depth 32; returns completed requests per second, second by second."""
    log = ROOT / "target/e2e-rate"
    subprocess.run(
        ["fio", "--name=flood", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k", "--iodepth=32",
         "--size=256m", "--time_based", f"--runtime={seconds}", f"--write_iops_log={log}", "--log_avg_msec=500",
         "--output-format=json", "--output=/dev/null"],
        check=True, capture_output=True,
    )  # fmt: skip
    rows = (ROOT / "target/e2e-rate_iops.1.log").read_text().splitlines()
    return [(int(r.split(",")[0]) / 1000, int(r.split(",")[1])) for r in rows]


@pytest.fixture
def limited(service):
    volume = service.create(size=8, volume_type="io2", Iops=500)
    attachment = service.attach(volume)
    yield volume, next(u for u in attachment["nbd_uris"] if u.startswith("nbd+unix"))
    service.detach(volume)
    service.boto().delete_volume(VolumeId=volume)


def test_500_iops_under_a_flood_then_2000_within_a_second(service, limited):
    volume, uri = limited
    rates = flood(uri, 10)
    steady = [rate for at, rate in rates if 1.5 < at < 9.5]
    average = sum(steady) / len(steady)
    assert 485 <= average <= 515, f"500 IOPS bought, {average:.0f} had: {rates}"

    process = subprocess.Popen(
        ["fio", "--name=flood", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k", "--iodepth=32",
         "--size=256m", "--time_based", "--runtime=9", f"--write_iops_log={ROOT}/target/e2e-change",
         "--log_avg_msec=250", "--log_unix_epoch=1", "--output=/dev/null"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(3)
    asked = time.time()
    service.boto().modify_volume(VolumeId=volume, Iops=2000)
    assert process.wait(timeout=60) == 0
    rows = (ROOT / "target/e2e-change_iops.1.log").read_text().splitlines()
    after = [int(r.split(",")[1]) for r in rows if asked + 1.25 < int(r.split(",")[0]) / 1000 < asked + 5]
    average = sum(after) / len(after)
    assert 1940 <= average <= 2060, f"2,000 IOPS bought, {average:.0f} had from a second later on: {after}"
    service.modified(volume)


def test_more_than_is_left_is_refused_and_changes_nothing(service, limited):
    volume, _ = limited
    before = service.volume(volume)
    ec2 = service.boto()
    with pytest.raises(botocore.exceptions.ClientError) as refusal:
        ec2.modify_volume(VolumeId=volume, Size=250, Iops=250_000)
    assert refusal.value.response["Error"]["Code"] == "InsufficientVolumeCapacity"
    after = service.volume(volume)
    for key in ["size_gib", "iops", "throughput_mib", "volume_type", "epoch"]:
        assert before[key] == after[key], key
    with pytest.raises(botocore.exceptions.ClientError) as refusal:
        ec2.create_volume(AvailabilityZone=service.zone("a"), Size=60_000, VolumeType="gp3")
    assert refusal.value.response["Error"]["Code"] == "InsufficientVolumeCapacity"


def test_the_ledger_never_promises_more_than_a_drive_has(service):
    made = []
    ec2 = service.boto()
    try:
        with pytest.raises(botocore.exceptions.ClientError) as refusal:
            for _ in range(64):
                made.append(
                    ec2.create_volume(AvailabilityZone=service.zone("b"), Size=8, VolumeType="io2", Iops=4000)["VolumeId"]
                )
        assert refusal.value.response["Error"]["Code"] == "InsufficientVolumeCapacity"
        for server in service.pliant("server", "list")["servers"]:
            for drive in server["drives"]:
                assert drive["promised_iops"] <= drive["iops"], (server["server"], drive)
                assert drive["promised_bytes"] <= drive["capacity_bytes"], (server["server"], drive)
                assert drive["promised_throughput_mib"] <= drive["throughput_mib"], (server["server"], drive)
    finally:
        for volume in made:
            wait_for(lambda v=volume: service.volume(v)["state"] == "available", 20, "available")
            ec2.delete_volume(VolumeId=volume)
