"""The unmodified aws CLI lives the life of a volume.

Run with the service's environment set: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION; `aws` is taken from PATH. Prints what failed and the
counts; exit 0 only if all held.
"""

import json
import os
import subprocess

from checks import (
    NOWHERE, REGION, TYPES, Checks, client, free_device, gone, remove_since,
    volume_ids, wait_for,
)

# Nothing of the user's own: only the environment speaks.
ENV = {
    **os.environ,
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_PAGER": "",
}


def run(*arguments, **env):
    command = ["aws", *map(str, arguments), "--output", "json"]
    return subprocess.run(
        command, env={**ENV, **env}, capture_output=True, text=True, timeout=120
    )


def aws(*arguments):
    """What the command printed, parsed."""
    done = run(*arguments)
    if done.returncode != 0:
        raise AssertionError(f"aws {' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return json.loads(done.stdout) if done.stdout.strip() else None


def ec2(*arguments):
    return aws("ec2", *arguments)


def refused(*arguments, **env):
    """The error code that the command printed."""
    done = run("ec2", *arguments, **env)
    return done.stderr.split("(")[1].split(")")[0] if "(" in done.stderr else done.stderr


def volume(volume_id):
    return ec2("describe-volumes", "--volume-ids", volume_id)["Volumes"][0]


def available(volume_id):
    """Asked by boto3: a process for each question, or the CLI's waiters, which look every 15
    seconds, would take most of the test's time."""
    one = lambda: client().describe_volumes(VolumeIds=[volume_id])["Volumes"][0]
    wait_for(f"{volume_id} available", lambda: one()["State"] == "available")


def running_instance():
    def found():
        at = ec2(
            "describe-instances", "--filters", "Name=instance-state-name,Values=running",
            "--query", "Reservations[].Instances[]",
        )
        return at and (at[0]["InstanceId"], at[0]["Placement"]["AvailabilityZone"])

    return wait_for("a running instance", found)


def places(checks):
    zones = ec2("describe-availability-zones", "--query", "AvailabilityZones[].ZoneName")
    checks.that("there are zones", len(zones) >= 1)
    checks.equal("the region", ec2("describe-regions", "--query", "Regions[].RegionName"), [REGION])
    account = aws("sts", "get-caller-identity", "--query", "Account")
    checks.equal("an account of twelve digits", len(account), 12)


def each_type(checks, zone):
    made = {}
    for volume_type, parameters in TYPES.items():
        options = [part for name, value in parameters.items() for part in (f"--{name.lower()}", value)]
        answer = ec2(
            "create-volume", "--availability-zone", zone, "--volume-type", volume_type, *options
        )
        made[volume_type] = answer["VolumeId"]
        checks.equal(f"{volume_type} is creating", answer["State"], "creating")
        available(answer["VolumeId"])
        ec2("wait", "volume-available", "--volume-ids", answer["VolumeId"])
        found = volume(answer["VolumeId"])
        checks.equal(f"{volume_type} is one", found["VolumeType"], volume_type)
        checks.equal(f"{volume_type} has its size", found["Size"], parameters["Size"])
        checks.equal(f"{volume_type} goes", ec2("delete-volume", "--volume-id", answer["VolumeId"]), None)
    for volume_type, volume_id in made.items():
        wait_for(f"{volume_id} gone", lambda: gone(client(), volume_id))
        ec2("wait", "volume-deleted", "--volume-ids", volume_id)
        code = refused("describe-volumes", "--volume-ids", volume_id)
        checks.equal(f"{volume_type} is gone", code, "InvalidVolume.NotFound")


def life_of_a_volume(checks, instance, zone):
    volume_id = ec2(
        "create-volume", "--availability-zone", zone, "--size", 8, "--volume-type", "gp3",
        "--tag-specifications", "ResourceType=volume,Tags=[{Key=Name,Value=a b}]",
    )["VolumeId"]
    available(volume_id)
    tags(checks, volume_id)
    attach(checks, volume_id, instance)
    modify(checks, volume_id)
    code = refused("delete-volume", "--volume-id", volume_id)
    checks.equal("an attached volume stays", code, "VolumeInUse")
    answer = ec2("detach-volume", "--volume-id", volume_id, "--instance-id", instance)
    checks.equal("detaching", answer["State"], "detaching")
    available(volume_id)
    checks.equal("detached once", refused("detach-volume", "--volume-id", volume_id), "IncorrectState")
    ec2("delete-volume", "--volume-id", volume_id)
    wait_for("the volume is gone", lambda: gone(client(), volume_id))
    ec2("wait", "volume-deleted", "--volume-ids", volume_id)


def tags(checks, volume_id):
    ec2("create-tags", "--resources", volume_id, "--tags", "Key=stage,Value=<test> & ü", "Key=x,Value=")
    found = ec2("describe-tags", "--filters", f"Name=resource-id,Values={volume_id}")["Tags"]
    shown = {t["Key"]: t["Value"] for t in found}
    checks.equal("tags", shown, {"Name": "a b", "stage": "<test> & ü", "x": ""})
    ec2("delete-tags", "--resources", volume_id, "--tags", "Key=x")
    found = ec2("describe-volumes", "--filters", "Name=tag:stage,Values=<*", "--query", "Volumes[].VolumeId")
    checks.that("found by its tag", volume_id in found)
    pages = ec2("describe-volumes", "--page-size", 1, "--query", "Volumes[].VolumeId")
    whole = ec2("describe-volumes", "--query", "Volumes[].VolumeId")
    checks.equal("pages hold all", pages, whole)


def attach(checks, volume_id, instance):
    device = free_device(client(), instance)
    answer = ec2(
        "attach-volume", "--volume-id", volume_id, "--instance-id", instance, "--device", device
    )
    checks.equal("attaching", answer["State"], "attaching")
    ec2("wait", "volume-in-use", "--volume-ids", volume_id)
    at = volume(volume_id)["Attachments"]
    checks.equal("at the device", (at[0]["Device"], at[0]["InstanceId"]), (device, instance))
    status = ec2("describe-volume-status", "--volume-ids", volume_id)["VolumeStatuses"][0]
    checks.equal("it is ok", status["VolumeStatus"]["Status"], "ok")


def modify(checks, volume_id):
    answer = ec2(
        "modify-volume", "--volume-id", volume_id, "--size", 9, "--volume-type", "gp3",
        "--iops", 3500, "--throughput", 150,
    )["VolumeModification"]
    checks.equal("modifying", answer["ModificationState"], "modifying")

    def completed():
        now = ec2("describe-volumes-modifications", "--volume-ids", volume_id)["VolumesModifications"][0]
        checks.that("not failed", now["ModificationState"] != "failed", str(now))
        return now["ModificationState"] == "completed" and now

    ended = wait_for("completed", completed, 120)
    checks.equal("progress", ended["Progress"], 100)
    now = volume(volume_id)
    checks.equal("it is so", (now["Size"], now["Iops"], now["Throughput"]), (9, 3500, 150))


def wrong_calls(checks, zone):
    create = ("create-volume", "--availability-zone", zone)
    for arguments, code in [
        (("describe-volumes", "--volume-ids", NOWHERE), "InvalidVolume.NotFound"),
        (("delete-volume", "--volume-id", "x"), "InvalidParameterValue"),
        ((*create, "--size", 1, "--volume-type", "gp9"), "UnknownVolumeType"),
        ((*create, "--size", 1, "--volume-type", "io2"), "InvalidParameterValue"),
        ((*create, "--size", 1, "--dry-run"), "DryRunOperation"),
        (("describe-availability-zones", "--dry-run"), "DryRunOperation"),
        (("create-snapshot", "--volume-id", NOWHERE), "InvalidAction"),
    ]:
        checks.equal(" ".join(map(str, arguments)), refused(*arguments), code)
    code = refused("describe-volumes", AWS_SECRET_ACCESS_KEY="wrong")
    checks.equal("a wrong secret", code, "AuthFailure")
    code = refused("describe-volumes", AWS_ACCESS_KEY_ID="AKIANOBODYNOBODY")
    checks.equal("an unknown key", code, "AuthFailure")


def main():
    checks = Checks()
    before = volume_ids(client())
    instance, zone = running_instance()
    checks.scenario(places)
    checks.scenario(each_type, zone)
    checks.scenario(life_of_a_volume, instance, zone)
    checks.scenario(wrong_calls, zone)
    checks.scenario(lambda _: remove_since(client(), before))
    checks.finish()


if __name__ == "__main__":
    main()
