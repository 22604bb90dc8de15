"""A whole Pliant service on this machine, for one test session, and its tools."""

import atexit
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("PLIANT", ROOT / "target/release/pliant"))


class Service:
    """`pliant up` on a directory of its own."""

    def __init__(self, *flags, directory=None):
        self.dir = pathlib.Path(directory or tempfile.mkdtemp(prefix="pliant-e2e-", dir=ROOT / "target"))
        self.flags = flags
        self.process = None
        self.url = None
        self.env = {}
        atexit.register(self.destroy)

    def start(self, limit=60):
        self.log = open(self.dir.with_suffix(".up.log"), "ab")
        self.process = subprocess.Popen(
            [BINARY, "up", "--dir", self.dir, "--port", "0", *self.flags],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        line = self.process.stdout.readline().strip()
        if not line.startswith("ready http://"):
            raise AssertionError(f"pliant up said {line!r}; see {self.log.name}")
        self.url = line.split()[1]
        for text in (self.dir / "env").read_text().splitlines():
            name, _, value = text.removeprefix("export ").partition("=")
            self.env[name] = value.strip("'\"")
        return self

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=30)
        self.process = None

    def destroy(self):
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            self.process.kill()
        if os.environ.get("KEEP") is None:
            shutil.rmtree(self.dir, ignore_errors=True)

    # Processes.

    def pid(self, name):
        return int((self.dir / "run" / f"{name}.pid").read_text())

    def kill(self, name, sig=signal.SIGKILL):
        """Signals a process of the service by its pid; returns the pid. One that is being started
        again is waited for: its new pid is about to be written."""

        def signalled():
            pid = self.pid(name)
            try:
                os.kill(pid, sig)
            except ProcessLookupError:
                return None
            return pid

        return wait_for(signalled, 10, f"{name} running")

    # Clients.

    def client_env(self, **more):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        return {**clean, **self.env, "AWS_EC2_METADATA_DISABLED": "true", **more}

    def boto(self, service="ec2", **overrides):
        import boto3
        from botocore.config import Config

        return boto3.client(
            service,
            endpoint_url=overrides.get("endpoint", self.env["AWS_ENDPOINT_URL"]),
            region_name=self.env["AWS_DEFAULT_REGION"],
            aws_access_key_id=overrides.get("key", self.env["AWS_ACCESS_KEY_ID"]),
            aws_secret_access_key=overrides.get("secret", self.env["AWS_SECRET_ACCESS_KEY"]),
            config=Config(retries={"max_attempts": 1, "mode": "standard"}),
        )

    def pliant(self, *arguments, check=True):
        """Runs the CLI with --json; returns what it printed. Looking again is harmless, so a
        question is put again while the manager is away; a command is not."""
        deadline = time.monotonic() + 20
        while True:
            done = subprocess.run(
                [BINARY, *map(str, arguments), "--json"], env=self.client_env(), capture_output=True, text=True,
                timeout=120,
            )  # fmt: skip
            question = check and arguments[1] in ("show", "list")
            if not (question and "cannot reach the service" in done.stderr and time.monotonic() < deadline):
                break
            time.sleep(0.02)
        if check and done.returncode != 0:
            raise AssertionError(f"pliant {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def zone(self, letter):
        return self.env["AWS_DEFAULT_REGION"] + letter

    def volume(self, volume_id):
        return self.pliant("volume", "show", volume_id)

    def instance(self, letter):
        """The instance that the zone's node manager registered."""
        answer = self.boto().describe_instances(
            Filters=[{"Name": "placement.availability-zone", "Values": [self.zone(letter)]}]
        )
        return answer["Reservations"][0]["Instances"][0]["InstanceId"]

    def create(self, zone="a", size=1, volume_type="gp3", **more):
        ec2 = self.boto()
        answer = ec2.create_volume(AvailabilityZone=self.zone(zone), Size=size, VolumeType=volume_type, **more)
        volume_id = answer["VolumeId"]
        wait_for(lambda: self.volume(volume_id)["state"] == "available", 20, f"{volume_id} available")
        return volume_id

    def attach(self, volume_id, zone="a", device="/dev/sdf", kernel_device=False):
        arguments = ["attachment", "create", volume_id, "--instance", self.instance(zone), "--device", device]
        self.pliant(*arguments, *(["--kernel-device"] if kernel_device else []))

        def attached():
            attachments = self.volume(volume_id)["attachments"]
            return attachments[0] if attachments and attachments[0]["state"] == "attached" else None

        return wait_for(attached, 20, f"{volume_id} attached")

    def detach(self, volume_id, force=False):
        self.boto().detach_volume(VolumeId=volume_id, Force=force)
        wait_for(lambda: self.volume(volume_id)["state"] == "available", 20, f"{volume_id} detached")

    def modify(self, volume_id, **parameters):
        arguments = []
        for name, value in parameters.items():
            arguments += [f"--{name}", str(value)]
        return self.pliant("volume", "modify", volume_id, *arguments)

    def modified(self, volume_id, limit=120, states=("completed",)):
        def ended():
            modification = self.volume(volume_id)["modification"]
            if modification["state"] == "failed" and "failed" not in states:
                raise AssertionError(f"modification failed: {modification['status_message']}")
            return modification if modification["state"] in states else None

        return wait_for(ended, limit, f"modification of {volume_id}")

    def in_sync(self, volume_id, limit=60):
        """Waits until the volume has all the in-sync replicas it wants, and no others."""

        def whole():
            volume = self.volume(volume_id)
            # What a dead server holds stays listed, as spare, until the server can free it.
            here = [r for r in volume["replicas"] if r["role"] != "spare" or r["server_up"]]
            settled = sorted(r["role"] for r in here) == ["mirror", "primary"] and all(r["server_up"] for r in here)
            return {**volume, "replicas": here} if settled and not volume["degraded"] else None

        return wait_for(whole, limit, f"{volume_id} in sync")

    def all_up(self, limit=30):
        """Waits until every process is linked to the manager: whoever was killed is back."""

        def up():
            health = self.pliant("server", "list")["servers"] + self.pliant("node", "list")["nodes"]
            return all(one["up"] for one in health)

        wait_for(up, limit, "every server and node manager up")

    def replica(self, volume_id, role):
        return next((r for r in self.volume(volume_id)["replicas"] if r["role"] == role), None)


class Load:
    """`pliant load`: a verifying load on one attachment, until stopped."""

    def __init__(self, uri, **flags):
        arguments = [BINARY, "load", uri, "--json"]
        for name, value in flags.items():
            arguments += [f"--{name.replace('_', '-')}", str(value)]
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def stop(self, limit=180):
        """Ends the load, lets it read everything back, and returns its report."""
        out, err = self.process.communicate("", timeout=limit)
        assert self.process.returncode in (0, 1), err
        return json.loads(out)


def assert_clean(report):
    """No I/O error, and every acknowledged write is there."""
    assert report["failure"] is None, report
    assert report["io_errors"] == 0, report
    assert report["mismatches"] == 0, report
    assert report["blocks_wrong"] == 0, report
    assert report["blocks_checked"] > 0, report


def wait_for(condition, limit, what):
    """Polls until the condition gives something true; fails loudly at the limit."""
    deadline = time.monotonic() + limit
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {limit} s")
        time.sleep(0.05)


def run(*arguments, **options):
    """Runs a tool; fails with what it said."""
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{arguments[0]}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout
