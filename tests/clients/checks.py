"""What the client tests share: counted checks, polling with a deadline, a second account."""

import json
import os
import sys
import time
import traceback
import urllib.request

import boto3
import botocore.auth
import botocore.awsrequest
import botocore.credentials
from botocore.config import Config
from botocore.exceptions import ClientError

ENDPOINT = os.environ["AWS_ENDPOINT_URL"]
REGION = os.environ.get("AWS_DEFAULT_REGION") or os.environ["AWS_REGION"]
KEY = os.environ["AWS_ACCESS_KEY_ID"]
SECRET = os.environ["AWS_SECRET_ACCESS_KEY"]

# Every type, with the least that it takes.
TYPES = {
    "gp2": {"Size": 1},
    "gp3": {"Size": 1},
    "io1": {"Size": 4, "Iops": 100},
    "io2": {"Size": 4, "Iops": 100},
    "st1": {"Size": 125},
    "sc1": {"Size": 125},
    "standard": {"Size": 1},
}
# Waiters of boto3 ask every 15 seconds unless told otherwise.
SOON = {"Delay": 1, "MaxAttempts": 60}
NOWHERE = "vol-0dead0dead0dead00"
NOBODY = "i-0dead0dead0dead00"


class Checks:
    """Runs scenarios and single checks; counts; goes on after a failure."""

    def __init__(self):
        self.passed = 0
        self.failed = []

    def that(self, what, holds, detail=""):
        if holds:
            self.passed += 1
        else:
            self.failed.append(what)
            print(f"FAIL {what} {detail}", flush=True)

    def equal(self, what, found, expected):
        self.that(what, found == expected, f"found {found!r}, expected {expected!r}")

    def scenario(self, function, *arguments):
        """A scenario that stops half way fails once, and does not stop the others."""
        try:
            function(self, *arguments)
        except Exception:
            self.failed.append(function.__name__)
            print(f"FAIL {function.__name__}\n{traceback.format_exc()}", flush=True)

    def finish(self):
        print(f"{self.passed} passed, {len(self.failed)} failed", flush=True)
        sys.exit(1 if self.failed else 0)


def client(service="ec2", key=KEY, secret=SECRET, token=None, validate=True):
    return boto3.client(
        service,
        endpoint_url=ENDPOINT,
        region_name=REGION,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        aws_session_token=token,
        config=Config(parameter_validation=validate, retries={"total_max_attempts": 1}),
    )


def refusal(call, **parameters):
    """HTTP status, code and message of a call that fails; 200 and no code when it does not."""
    try:
        call(**parameters)
    except ClientError as error:
        found = error.response
        status = found["ResponseMetadata"]["HTTPStatusCode"]
        return status, found["Error"]["Code"], found["Error"]["Message"]
    return 200, None, ""


def native(method, path, body=None, key=KEY, secret=SECRET):
    """A call of the native API, signed by botocore."""
    data = b"" if body is None else json.dumps(body).encode()
    signed = botocore.awsrequest.AWSRequest(method=method, url=ENDPOINT + path, data=data)
    credentials = botocore.credentials.Credentials(key, secret)
    botocore.auth.SigV4Auth(credentials, "pliant", REGION).add_auth(signed)
    request = urllib.request.Request(
        ENDPOINT + path, data=data or None, headers=dict(signed.headers), method=method
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def wait_for(what, condition, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.2)


def gone(ec2, volume_id):
    return refusal(ec2.describe_volumes, VolumeIds=[volume_id])[1] == "InvalidVolume.NotFound"


def running_instance(ec2):
    """Instance and zone of a node that can take attachments."""

    def found():
        pages = ec2.get_paginator("describe_instances").paginate(
            Filters=[{"Name": "instance-state-name", "Values": ["running"]}]
        )
        instances = [i for p in pages for r in p["Reservations"] for i in r["Instances"]]
        return instances and (
            instances[0]["InstanceId"],
            instances[0]["Placement"]["AvailabilityZone"],
        )

    return wait_for("a running instance", found)


def free_device(ec2, instance):
    """A device name that the instance does not use yet."""
    found = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    used = {m["DeviceName"] for m in found["BlockDeviceMappings"]}
    return next(d for d in (f"/dev/sd{c}" for c in "fghijklmnop") if d not in used)


def volume_ids(ec2):
    pages = ec2.get_paginator("describe_volumes").paginate()
    return {v["VolumeId"] for page in pages for v in page["Volumes"]}


def remove_since(ec2, before):
    """Removes what a run left behind, so that the service is as it was."""
    for volume_id in volume_ids(ec2) - before:
        refusal(ec2.detach_volume, VolumeId=volume_id, Force=True)
        removed = lambda: refusal(ec2.delete_volume, VolumeId=volume_id)[1] in (
            None, "InvalidVolume.NotFound",
        )
        wait_for(f"{volume_id} can be deleted", removed)
        wait_for(f"{volume_id} is gone", lambda: gone(ec2, volume_id))
