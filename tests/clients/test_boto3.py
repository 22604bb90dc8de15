"""Unmodified boto3 lives the life of a volume, then does everything wrong that a table knows.

Run with the service's environment set: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION. The key must be the root account's, which can make the
second account that the test needs. Prints what failed and the counts; exit 0 only if all held.
"""

import datetime
import unittest.mock
import urllib.error
import urllib.request

import botocore.auth

from checks import (
    ENDPOINT, NOBODY, NOWHERE, REGION, SECRET, SOON, TYPES,
    Checks, client, free_device, gone, native, refusal, remove_since, running_instance, volume_ids,
    wait_for,
)


def places(checks, ec2):
    zones = ec2.describe_availability_zones()["AvailabilityZones"]
    checks.that("there are zones", len(zones) >= 1)
    checks.that("zones are available", all(z["State"] == "available" for z in zones))
    checks.that("zones are of the region", all(z["RegionName"] == REGION for z in zones))
    last = zones[-1]
    by_id = ec2.describe_availability_zones(ZoneIds=[last["ZoneId"]])["AvailabilityZones"]
    checks.equal("a zone by its id", [z["ZoneName"] for z in by_id], [last["ZoneName"]])
    regions = ec2.describe_regions()["Regions"]
    checks.equal("the region", [r["RegionName"] for r in regions], [REGION])
    checks.that("its endpoint is this one", ENDPOINT.endswith(regions[0]["Endpoint"]))
    identity = client("sts").get_caller_identity()
    checks.equal("twelve digits", len(identity["Account"]), 12)
    checks.that("the arn names the account", identity["Account"] in identity["Arn"])


def each_type(checks, ec2, zone, volume_type, parameters):
    made = ec2.create_volume(AvailabilityZone=zone, VolumeType=volume_type, **parameters)
    volume_id = made["VolumeId"]
    checks.equal(f"{volume_type} is creating", made["State"], "creating")
    checks.equal(f"{volume_type} has its size", made["Size"], parameters["Size"])
    checks.that(f"{volume_type} has a 17 digit id", len(volume_id) == 21)
    ec2.get_waiter("volume_available").wait(VolumeIds=[volume_id], WaiterConfig=SOON)
    found = ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"][0]
    checks.equal(f"{volume_type} is one", found["VolumeType"], volume_type)
    expected = {"gp2": 100, "gp3": 3000, "io1": 100, "io2": 100}.get(volume_type)
    checks.equal(f"{volume_type} IOPS", found.get("Iops"), expected)
    checks.equal(
        f"{volume_type} throughput", found.get("Throughput"), 125 if volume_type == "gp3" else None
    )
    checks.equal(f"{volume_type} has no tags", "Tags" in found, False)
    checks.equal(f"{volume_type} has no attachments", found["Attachments"], [])
    checks.equal(f"{volume_type} keeps its time", found["CreateTime"], made["CreateTime"])
    status = ec2.describe_volume_status(VolumeIds=[volume_id])["VolumeStatuses"][0]
    checks.equal(f"{volume_type} is ok", status["VolumeStatus"]["Status"], "ok")
    ec2.delete_volume(VolumeId=volume_id)
    ec2.get_waiter("volume_deleted").wait(VolumeIds=[volume_id], WaiterConfig=SOON)
    code = refusal(ec2.delete_volume, VolumeId=volume_id)[1]
    checks.equal(f"{volume_type} is gone", code, "InvalidVolume.NotFound")


def life_of_a_volume(checks, ec2):
    instance, zone = running_instance(ec2)
    tags = [{"Key": "Name", "Value": "a <b> & é"}, {"Key": "empty", "Value": ""}]
    volume_id = ec2.create_volume(
        AvailabilityZone=zone,
        Size=8,
        VolumeType="gp3",
        Encrypted=False,
        TagSpecifications=[{"ResourceType": "volume", "Tags": tags}],
    )["VolumeId"]
    ec2.get_waiter("volume_available").wait(VolumeIds=[volume_id], WaiterConfig=SOON)
    device = free_device(ec2, instance)
    attach(checks, ec2, volume_id, instance, device)
    modify(checks, ec2, volume_id)
    code = refusal(ec2.delete_volume, VolumeId=volume_id)[1]
    checks.equal("an attached volume stays", code, "VolumeInUse")
    detach(checks, ec2, volume_id, instance, device)
    ec2.delete_volume(VolumeId=volume_id)
    wait_for("the volume is gone", lambda: gone(ec2, volume_id))


def attach(checks, ec2, volume_id, instance, device):
    asked = dict(VolumeId=volume_id, InstanceId=instance, Device=device)
    code = refusal(ec2.attach_volume, DryRun=True, **asked)[:2]
    checks.equal("attaching would succeed", code, (412, "DryRunOperation"))
    answer = ec2.attach_volume(**asked)
    checks.equal("attaching", answer["State"], "attaching")
    ec2.get_waiter("volume_in_use").wait(VolumeIds=[volume_id], WaiterConfig=SOON)

    def attached():
        attachments = ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"][0]["Attachments"]
        return attachments[0] if attachments[0]["State"] == "attached" else None

    attachment = wait_for("the volume is attached", attached)
    checks.equal("at the device", attachment["Device"], device)
    checks.equal("at the instance", attachment["InstanceId"], instance)
    filters = [
        {"Name": "attachment.instance-id", "Values": [instance]},
        {"Name": "attachment.device", "Values": [device]},
    ]
    found = ec2.describe_volumes(VolumeIds=[volume_id], Filters=filters)["Volumes"]
    checks.equal("found by its attachment", [v["VolumeId"] for v in found], [volume_id])
    at = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    mapped = [m["Ebs"]["VolumeId"] for m in at["BlockDeviceMappings"]]
    checks.that("the instance shows it", volume_id in mapped)
    again = refusal(ec2.attach_volume, VolumeId=volume_id, InstanceId=instance, Device="/dev/sdq")
    checks.equal("attached once", again[:2], (400, "VolumeInUse"))
    device_in_use(checks, ec2, asked)


def device_in_use(checks, ec2, attached):
    """CSI drivers look for the words, and try another name."""
    zone = ec2.describe_volumes(VolumeIds=[attached["VolumeId"]])["Volumes"][0]["AvailabilityZone"]
    other = ec2.create_volume(AvailabilityZone=zone, Size=1, VolumeType="gp2")["VolumeId"]
    ec2.get_waiter("volume_available").wait(VolumeIds=[other], WaiterConfig=SOON)
    found = refusal(ec2.attach_volume, **{**attached, "VolumeId": other})
    checks.equal("a device is used once", found[1], "InvalidParameterValue")
    checks.that("and it says so", "already in use" in found[2], found[2])
    ec2.delete_volume(VolumeId=other)


def modify(checks, ec2, volume_id):
    code = refusal(ec2.describe_volumes_modifications, VolumeIds=[volume_id])[1]
    checks.equal("never modified", code, "InvalidVolumeModification.NotFound")
    for asked, expected in [
        ({"Size": 9}, {"TargetSize": 9, "OriginalSize": 8, "TargetVolumeType": "gp3"}),
        ({"Iops": 4000, "Throughput": 200}, {"TargetIops": 4000, "TargetThroughput": 200}),
        ({"VolumeType": "standard"}, {"TargetVolumeType": "standard", "TargetSize": 9}),
        ({"VolumeType": "gp2", "Size": 10}, {"OriginalVolumeType": "standard", "TargetIops": 100}),
    ]:
        dry = refusal(ec2.modify_volume, VolumeId=volume_id, DryRun=True, **asked)[:2]
        checks.equal(f"{asked} would succeed", dry, (412, "DryRunOperation"))
        answer = ec2.modify_volume(VolumeId=volume_id, **asked)["VolumeModification"]
        checks.equal(f"{asked} is modifying", answer["ModificationState"], "modifying")
        shown = {name: answer.get(name) for name in expected}
        checks.equal(f"{asked} is understood", shown, expected)
        ended = watch(checks, ec2, volume_id, asked)
        checks.equal(f"{asked} completes", ended["ModificationState"], "completed")
        checks.equal(f"{asked} progress", ended["Progress"], 100)
        checks.that(f"{asked} has an end", "EndTime" in ended)
        volume = ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"][0]
        checks.equal(f"{asked} is so", {n: volume.get(n) for n in asked}, asked)
    of_all = ec2.get_paginator("describe_volumes_modifications").paginate(
        Filters=[{"Name": "modification-state", "Values": ["completed"]}]
    )
    found = [m["VolumeId"] for page in of_all for m in page["VolumesModifications"]]
    checks.equal("one modification of a volume is shown", found.count(volume_id), 1)


def watch(checks, ec2, volume_id, asked):
    """Follows a modification to its end: states and progress only go forward."""
    order = ["modifying", "optimizing", "completed", "failed"]
    seen = [("modifying", 0)]

    def ended():
        now = ec2.describe_volumes_modifications(VolumeIds=[volume_id])["VolumesModifications"][0]
        seen.append((now["ModificationState"], now["Progress"]))
        return now if now["ModificationState"] in ("completed", "failed") else None

    last = wait_for(f"{asked} ends", ended, 120)
    steps = [(order.index(state), progress) for state, progress in seen]
    checks.that(f"{asked} goes forward", steps == sorted(steps), str(seen))
    return last


def detach(checks, ec2, volume_id, instance, device):
    wrong = refusal(ec2.detach_volume, VolumeId=volume_id, InstanceId=instance, Device="/dev/sdz")
    checks.equal("not at this device", wrong[1], "InvalidAttachment.NotFound")
    answer = ec2.detach_volume(VolumeId=volume_id, InstanceId=instance, Device=device)
    checks.equal("detaching", answer["State"], "detaching")
    ec2.get_waiter("volume_available").wait(VolumeIds=[volume_id], WaiterConfig=SOON)
    again = refusal(ec2.detach_volume, VolumeId=volume_id)
    checks.equal("detached once", again[1], "IncorrectState")
    checks.that("and it says available", "available" in again[2], again[2])
    asked = dict(VolumeId=volume_id, InstanceId=instance, Device=device)
    ec2.attach_volume(**asked)
    ec2.detach_volume(VolumeId=volume_id, Force=True)
    ec2.get_waiter("volume_available").wait(VolumeIds=[volume_id], WaiterConfig=SOON)


def tags_filters_and_pages(checks, ec2, zone):
    mark = f"mark-{datetime.datetime.now().timestamp()}"
    made = [
        ec2.create_volume(
            AvailabilityZone=zone,
            Size=size,
            VolumeType="gp2",
            TagSpecifications=[
                {"ResourceType": "volume", "Tags": [{"Key": "mark", "Value": mark}]}
            ],
        )["VolumeId"]
        for size in (1, 2, 3)
    ]
    ec2.get_waiter("volume_available").wait(VolumeIds=made, WaiterConfig=SOON)
    of_mark = {"Name": "tag:mark", "Values": [mark]}
    filters(checks, ec2, made, of_mark)
    change_tags(checks, ec2, made)
    pages(checks, ec2, made, of_mark)
    for volume_id in made:
        ec2.delete_volume(VolumeId=volume_id)
    for volume_id in made:
        wait_for("the volumes are gone", lambda: gone(ec2, volume_id))


def filters(checks, ec2, made, of_mark):
    for more, expected in [
        ([], made),
        ([{"Name": "size", "Values": ["2", "3"]}], made[1:]),
        ([{"Name": "size", "Values": ["2"]}, {"Name": "volume-id", "Values": [made[0]]}], []),
        ([{"Name": "volume-type", "Values": ["gp?"]}], made),
        ([{"Name": "volume-type", "Values": ["GP2"]}], []),
        ([{"Name": "status", "Values": ["avail*"]}], made),
        ([{"Name": "tag-key", "Values": ["m*k"]}], made),
        ([{"Name": "encrypted", "Values": ["true"]}], []),
        ([{"Name": "volume-id", "Values": [f"vol-{n:017x}" for n in range(500)]}], []),
    ]:
        found = ec2.describe_volumes(Filters=[of_mark, *more])["Volumes"]
        ids = {v["VolumeId"] for v in found}
        checks.equal(f"filter {str(more)[:90]}", ids, set(expected))


def change_tags(checks, ec2, made):
    def tags_of(volume_id):
        found = ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"][0]
        return {t["Key"]: t["Value"] for t in found.get("Tags", []) if t["Key"] != "mark"}

    more = [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": ""}, {"Key": "ü <&>", "Value": "\"ß\""}]
    ec2.create_tags(Resources=made[:2], Tags=more)
    expected = {t["Key"]: t["Value"] for t in more}
    checks.equal("tags are there", [tags_of(v) for v in made], [expected, expected, {}])
    listed = ec2.describe_tags(
        Filters=[{"Name": "resource-id", "Values": made}, {"Name": "key", "Values": ["a", "b"]}]
    )["Tags"]
    checks.equal("tags are listed", len(listed), 4)
    checks.equal("of volumes", {t["ResourceType"] for t in listed}, {"volume"})
    ec2.create_tags(Resources=made[:1], Tags=[{"Key": "a", "Value": "2"}])
    checks.equal("a tag is replaced", tags_of(made[0])["a"], "2")
    ec2.delete_tags(Resources=made[:1], Tags=[{"Key": "a", "Value": "1"}, {"Key": "b"}])
    checks.equal("only a tag of this value goes", sorted(tags_of(made[0])), ["a", "ü <&>"])
    ec2.delete_tags(Resources=made[1:2], Tags=[{"Key": "b", "Value": ""}, {"Key": "a"}])
    checks.equal("an empty value is a value", sorted(tags_of(made[1])), ["ü <&>"])
    too_many = [{"Key": f"k{n}", "Value": ""} for n in range(51)]
    code = refusal(ec2.create_tags, Resources=made[:1], Tags=too_many)[1]
    checks.equal("51 tags", code, "TagLimitExceeded")
    code = refusal(ec2.create_tags, Resources=[made[0], NOWHERE], Tags=[{"Key": "x", "Value": ""}])[1]
    checks.equal("a resource is missing", code, "InvalidVolume.NotFound")
    checks.that("and nothing changed", "x" not in tags_of(made[0]))
    instance, _ = running_instance(ec2)
    ec2.create_tags(Resources=[instance], Tags=[{"Key": "role", "Value": "db"}])
    ec2.delete_tags(Resources=[instance], Tags=[{"Key": "role"}])


def pages(checks, ec2, made, of_mark):
    paginator = ec2.get_paginator("describe_volumes")
    got = list(paginator.paginate(Filters=[of_mark], PaginationConfig={"PageSize": 2}))
    checks.equal("pages of two", [len(p["Volumes"]) for p in got], [2, 1])
    ids = {v["VolumeId"] for p in got for v in p["Volumes"]}
    checks.equal("pages hold all", ids, set(made))
    token = ec2.describe_volumes(Filters=[of_mark], MaxResults=2)["NextToken"]
    for what, asked in [
        ("another query's token", {"NextToken": token}),
        ("a token of nobody", {"Filters": [of_mark], "NextToken": "nonsense"}),
    ]:
        code = refusal(ec2.describe_volumes, **asked)[1]
        checks.equal(what, code, "InvalidPaginationToken")
    volumes = ec2.describe_volumes(Filters=[of_mark], MaxResults=2, NextToken=token)["Volumes"]
    checks.equal("a token serves twice", len(volumes), 1)
    statuses = ec2.get_paginator("describe_volume_status").paginate(PaginationConfig={"PageSize": 1})
    found = [s["VolumeId"] for p in statuses for s in p["VolumeStatuses"]]
    checks.that("statuses in pages", set(made) <= set(found) and len(found) == len(set(found)))


def client_tokens(checks, ec2, zone):
    token = f"token-{datetime.datetime.now().timestamp()}"
    asked = dict(AvailabilityZone=zone, Size=1, VolumeType="gp2", ClientToken=token)
    first = ec2.create_volume(**asked)["VolumeId"]
    checks.equal("the same call gives the same", ec2.create_volume(**asked)["VolumeId"], first)
    code = refusal(ec2.create_volume, **{**asked, "Size": 2})[1]
    checks.equal("another call with its token", code, "IdempotentParameterMismatch")
    other = ec2.create_volume(**{**asked, "ClientToken": token + "-2"})["VolumeId"]
    checks.that("another token, another volume", other != first)
    ec2.get_waiter("volume_available").wait(VolumeIds=[first, other], WaiterConfig=SOON)
    for volume_id in (first, other):
        ec2.delete_volume(VolumeId=volume_id)


def wrong_calls(checks, ec2, zone):
    """Call, parameters, expected code, and a part of the message where clients read it."""
    instance, at = running_instance(ec2)
    zones = [z["ZoneName"] for z in ec2.describe_availability_zones()["AvailabilityZones"]]
    volume = ec2.create_volume(AvailabilityZone=at, Size=4, VolumeType="gp2")["VolumeId"]
    ec2.get_waiter("volume_available").wait(VolumeIds=[volume], WaiterConfig=SOON)
    here = {"AvailabilityZone": zone}
    gp3 = {**here, "Size": 1, "VolumeType": "gp3"}
    for call, parameters, code, part in [
        ("create_volume", {"Size": 1}, "MissingParameter", ""),
        ("create_volume", {**here, "AvailabilityZoneId": "x", "Size": 1}, "InvalidParameterCombination", ""),
        ("create_volume", {"AvailabilityZone": "mars-1a", "Size": 1}, "InvalidZone.NotFound", ""),
        ("create_volume", here, "MissingParameter", "size/snapshot"),
        ("create_volume", {**here, "Size": 0}, "InvalidParameterValue", "too small"),
        ("create_volume", {**here, "Size": -1}, "InvalidParameterValue", ""),
        ("create_volume", {**here, "Size": "x"}, "InvalidParameterValue", ""),
        ("create_volume", {**gp3, "Size": 70000}, "InvalidParameterValue", "too large for volume type gp3; maximum is 65536GiB"),
        ("create_volume", {**here, "Size": 1, "VolumeType": "st1"}, "InvalidParameterValue", "minimum is 125GiB"),
        ("create_volume", {**here, "Size": 1, "VolumeType": "gp9"}, "UnknownVolumeType", "gp9"),
        ("create_volume", {**here, "Size": 1, "Iops": 100}, "InvalidParameterCombination", "iops is not supported for gp2"),
        ("create_volume", {**here, "Size": 4, "VolumeType": "io2"}, "InvalidParameterCombination", "iops must be specified for io2"),
        ("create_volume", {**here, "Size": 4, "VolumeType": "io1", "Iops": 300}, "InvalidParameterValue", "ratio of 75.000000 is too high; maximum is 50"),
        ("create_volume", {**here, "Size": 1, "Throughput": 125}, "InvalidParameterCombination", "throughput"),
        ("create_volume", {**gp3, "Iops": 90000}, "InvalidParameterValue", "Volume iops of 90000 is too high; maximum is 80000."),
        ("create_volume", {**gp3, "Throughput": 2001}, "InvalidParameterValue", "too high"),
        ("create_volume", {**gp3, "Throughput": 1000}, "InvalidParameterValue", "maximum is 0.250000 MiBps per iops"),
        ("create_volume", {**gp3, "KmsKeyId": "x"}, "InvalidParameterDependency", ""),
        ("create_volume", {**gp3, "Encrypted": True}, "EncryptedVolumesNotSupported", ""),
        ("create_volume", {**gp3, "MultiAttachEnabled": True}, "InvalidParameterCombination", ""),
        ("create_volume", {**gp3, "SnapshotId": "snap-0dead0dead0dead00"}, "InvalidSnapshot.NotFound", ""),
        ("create_volume", {**gp3, "OutpostArn": "arn:x"}, "UnsupportedOperation", ""),
        ("create_volume", {**gp3, "ClientToken": "x" * 65}, "InvalidParameterValue", ""),
        ("create_volume", {**gp3, "TagSpecifications": [{"ResourceType": "snapshot"}]}, "InvalidParameterValue", ""),
        ("create_volume", {**gp3, "TagSpecifications": [{"ResourceType": "volume", "Tags": [{"Key": "aws:x", "Value": ""}]}]}, "InvalidTagKey.Malformed", ""),
        # CSI drivers read the limit out of this text: it must come before DryRunOperation.
        ("create_volume", {**gp3, "Iops": 2147483647, "DryRun": True}, "InvalidParameterValue", "Volume iops of 2147483647 is too high; maximum is 80000"),
        ("create_volume", {**gp3, "DryRun": True}, "DryRunOperation", ""),
        ("delete_volume", {"VolumeId": NOWHERE}, "InvalidVolume.NotFound", NOWHERE),
        ("delete_volume", {"VolumeId": "vol-x"}, "InvalidVolumeID.Malformed", "vol-x"),
        ("delete_volume", {"VolumeId": "x"}, "InvalidParameterValue", "Expected: 'vol-...'"),
        ("delete_volume", {"VolumeId": NOWHERE, "DryRun": True}, "InvalidVolume.NotFound", NOWHERE),
        ("delete_volume", {"VolumeId": volume, "DryRun": True}, "DryRunOperation", ""),
        ("describe_volumes", {"VolumeIds": [volume, NOWHERE]}, "InvalidVolume.NotFound", NOWHERE),
        ("describe_volumes", {"VolumeIds": [volume], "MaxResults": 5}, "InvalidParameterCombination", ""),
        ("describe_volumes", {"Filters": [{"Name": "x", "Values": ["y"]}]}, "InvalidParameterValue", "The filter 'x' is invalid"),
        ("describe_volumes", {"DryRun": True}, "DryRunOperation", ""),
        ("describe_volume_status", {"VolumeIds": [NOWHERE]}, "InvalidVolume.NotFound", NOWHERE),
        ("describe_volumes_modifications", {"VolumeIds": [NOWHERE]}, "InvalidVolume.NotFound", NOWHERE),
        ("describe_volumes_modifications", {"VolumeIds": [volume]}, "InvalidVolumeModification.NotFound", volume),
        ("describe_volumes_modifications", {"MaxResults": 501}, "InvalidParameterValue", ""),
        ("describe_tags", {"MaxResults": 4}, "InvalidParameterValue", ""),
        ("describe_instances", {"InstanceIds": [NOBODY]}, "InvalidInstanceID.NotFound", NOBODY),
        ("describe_instances", {"InstanceIds": ["i-x"]}, "InvalidInstanceID.Malformed", "i-x"),
        ("describe_availability_zones", {"ZoneNames": ["mars-1a"]}, "InvalidParameterValue", "mars-1a"),
        # The health probe of CSI drivers.
        ("describe_availability_zones", {"DryRun": True}, "DryRunOperation", ""),
        ("describe_regions", {"RegionNames": ["mars-1"]}, "InvalidParameterValue", "mars-1"),
        ("modify_volume", {"VolumeId": NOWHERE, "Size": 5}, "InvalidVolume.NotFound", NOWHERE),
        ("modify_volume", {"VolumeId": volume}, "MissingParameter", "at least one"),
        ("modify_volume", {"VolumeId": volume, "Size": 3}, "InvalidParameterValue", "New size cannot be smaller than existing size"),
        ("modify_volume", {"VolumeId": volume, "Size": 20000}, "InvalidParameterValue", "too large"),
        ("modify_volume", {"VolumeId": volume, "Iops": 500}, "InvalidParameterCombination", "not supported for gp2"),
        ("modify_volume", {"VolumeId": volume, "VolumeType": "gp9"}, "UnknownVolumeType", ""),
        ("modify_volume", {"VolumeId": volume, "VolumeType": "st1"}, "InvalidParameterValue", "minimum is 125GiB"),
        ("modify_volume", {"VolumeId": volume, "VolumeType": "io1", "Iops": 300}, "InvalidParameterValue", "ratio"),
        ("modify_volume", {"VolumeId": volume, "Size": 5, "DryRun": True}, "DryRunOperation", ""),
        ("attach_volume", {"VolumeId": NOWHERE, "InstanceId": instance, "Device": "/dev/sdf"}, "InvalidVolume.NotFound", NOWHERE),
        ("attach_volume", {"VolumeId": volume, "InstanceId": NOBODY, "Device": "/dev/sdf"}, "InvalidInstanceID.NotFound", NOBODY),
        ("attach_volume", {"VolumeId": volume, "InstanceId": "x", "Device": "/dev/sdf"}, "InvalidInstanceID.Malformed", ""),
        ("attach_volume", {"VolumeId": volume, "InstanceId": instance}, "MissingParameter", "Device"),
        ("detach_volume", {"VolumeId": volume}, "IncorrectState", "available"),
        ("detach_volume", {"VolumeId": NOWHERE}, "InvalidVolume.NotFound", NOWHERE),
        ("create_tags", {"Resources": [volume], "Tags": []}, "MissingParameter", ""),
        ("create_tags", {"Resources": ["ami-1"], "Tags": [{"Key": "a", "Value": ""}]}, "InvalidID", "ami-1"),
        ("create_tags", {"Resources": [volume], "Tags": [{"Key": "x" * 128, "Value": ""}]}, "InvalidParameterValue", ""),
        ("delete_tags", {"Resources": [NOWHERE]}, "InvalidVolume.NotFound", NOWHERE),
        ("run_instances", {"MinCount": 1, "MaxCount": 1}, "InvalidAction", "RunInstances"),
        ("create_snapshot", {"VolumeId": volume}, "InvalidAction", "CreateSnapshot"),
    ]:
        status, found, message = refusal(getattr(client(validate=False), call), **parameters)
        what = f"{call} {str(parameters)[:110]}"
        checks.equal(what, found, code)
        checks.equal(f"{what}: status", status, 412 if code == "DryRunOperation" else 400)
        checks.that(f"{what}: message", part in message, f"{message!r} lacks {part!r}")
    in_other_zone(checks, ec2, volume, at, zones)
    ec2.delete_volume(VolumeId=volume)


def in_other_zone(checks, ec2, volume, zone, zones):
    found = ec2.describe_instances(
        Filters=[{"Name": "availability-zone", "Values": [z for z in zones if z != zone]}]
    )["Reservations"]
    if found:
        there = found[0]["Instances"][0]["InstanceId"]
        code = refusal(ec2.attach_volume, VolumeId=volume, InstanceId=there, Device="/dev/sdf")[1]
        checks.equal("an instance in another zone", code, "InvalidVolume.ZoneMismatch")


def strangers(checks, ec2, zone):
    """Wrong keys, wrong clocks, and an account that asks for another's volume."""
    read = lambda one: refusal(one.describe_volumes)[:2]
    checks.equal("a wrong secret", read(client(secret=SECRET + "x")), (401, "AuthFailure"))
    checks.equal("an unknown key", read(client(key="AKIANOBODYNOBODY")), (401, "AuthFailure"))
    checks.equal("a session token", read(client(token="token")), (401, "AuthFailure"))
    sts = client("sts", secret=SECRET + "x")
    code = refusal(sts.get_caller_identity)[:2]
    checks.equal("a wrong secret at STS", code, (403, "SignatureDoesNotMatch"))
    for minutes, expected in [(-14, 200), (14, 200), (-16, 400), (16, 400)]:
        checks.equal(f"a clock {minutes} minutes off", read_at(minutes)[0], expected)
    checks.equal("an expired date", read_at(-16), (400, "RequestExpired"))
    checks.equal("no signature", unsigned(), (403, "MissingAuthenticationToken"))
    presigned(checks, ec2)
    another_account(checks, ec2, zone)


def read_at(minutes):
    now = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=minutes)
    shown = lambda remove_tzinfo=True: now.replace(tzinfo=None) if remove_tzinfo else now
    with unittest.mock.patch.object(botocore.auth, "get_current_datetime", shown):
        return refusal(client().describe_volumes)[:2]


def unsigned():
    try:
        urllib.request.urlopen(ENDPOINT, data=b"Action=DescribeVolumes", timeout=30)
    except urllib.error.HTTPError as error:
        body = error.read().decode()
        return error.code, body.split("<Code>")[1].split("</Code>")[0]
    return 200, None


def presigned(checks, ec2):
    url = ec2.generate_presigned_url("describe_regions", ExpiresIn=60, HttpMethod="GET")
    with urllib.request.urlopen(url, timeout=30) as answer:
        checks.that("a presigned call", REGION in answer.read().decode())
    try:
        urllib.request.urlopen(url.replace("DescribeRegions", "DescribeVolumes"), timeout=30)
        checks.that("a presigned call that was changed", False)
    except urllib.error.HTTPError as error:
        checks.equal("a presigned call that was changed", error.code, 401)


def another_account(checks, ec2, zone):
    made = native("POST", "/v1/accounts", {"name": "another"})
    theirs = client(key=made["access_key"], secret=made["secret_key"])
    who = client("sts", key=made["access_key"], secret=made["secret_key"]).get_caller_identity()
    checks.equal("it is another account", who["Account"], made["account"])
    instance, _ = running_instance(ec2)
    ours = ec2.create_volume(AvailabilityZone=zone, Size=1, VolumeType="gp2")["VolumeId"]
    ec2.get_waiter("volume_available").wait(VolumeIds=[ours], WaiterConfig=SOON)
    one = {"VolumeId": ours}
    for call, asked in [
        ("describe_volumes", {"VolumeIds": [ours]}),
        ("describe_volume_status", {"VolumeIds": [ours]}),
        ("describe_volumes_modifications", {"VolumeIds": [ours]}),
        ("delete_volume", one),
        ("delete_volume", {**one, "DryRun": True}),
        ("modify_volume", {**one, "Size": 2}),
        ("attach_volume", {**one, "InstanceId": instance, "Device": "/dev/sdf"}),
        ("detach_volume", {**one, "Force": True}),
        ("create_tags", {"Resources": [ours], "Tags": [{"Key": "x", "Value": "y"}]}),
        ("delete_tags", {"Resources": [ours]}),
    ]:
        code = refusal(getattr(theirs, call), **asked)[1]
        checks.equal(f"another account's {call}", code, "InvalidVolume.NotFound")
    for call, key in [
        ("describe_volumes", "Volumes"),
        ("describe_volume_status", "VolumeStatuses"),
        ("describe_instances", "Reservations"),
        ("describe_tags", "Tags"),
        ("describe_volumes_modifications", "VolumesModifications"),
    ]:
        checks.equal(f"another account's {call} is empty", getattr(theirs, call)()[key], [])
    code = refusal(theirs.describe_instances, InstanceIds=[instance])[1]
    checks.equal("another account's instance", code, "InvalidInstanceID.NotFound")
    left = ec2.describe_volumes(VolumeIds=[ours])["Volumes"][0]
    checks.equal("our volume is as it was", (left["State"], left["Size"]), ("available", 1))
    checks.equal("with no tags", left.get("Tags"), None)
    ec2.delete_volume(VolumeId=ours)


def main():
    checks = Checks()
    ec2 = client()
    before = volume_ids(ec2)
    _, zone = running_instance(ec2)
    checks.scenario(places, ec2)
    for volume_type, parameters in TYPES.items():
        checks.scenario(each_type, ec2, zone, volume_type, parameters)
    checks.scenario(life_of_a_volume, ec2)
    checks.scenario(tags_filters_and_pages, ec2, zone)
    checks.scenario(client_tokens, ec2, zone)
    checks.scenario(wrong_calls, ec2, zone)
    checks.scenario(strangers, ec2, zone)
    checks.scenario(lambda _: remove_since(ec2, before))
    checks.finish()


if __name__ == "__main__":
    main()
