"""Unmodified boto3 and aws CLI drive the life of a volume."""

import pathlib
import subprocess
import sys

import pytest

CLIENTS = pathlib.Path(__file__).resolve().parents[1] / "clients"


@pytest.mark.parametrize("script", ["test_xml.py", "test_boto3.py", "test_aws_cli.py"])
def test_the_life_of_a_volume(service, script):
    venv = pathlib.Path(sys.executable).parent
    env = service.client_env(PATH=f"{venv}:/usr/local/bin:/usr/bin:/bin")
    done = subprocess.run([sys.executable, CLIENTS / script], env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
