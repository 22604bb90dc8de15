#!/usr/bin/env bash
# Measures Pliant beside qemu-nbd on the same disk, and the cost of moving and failing over.
set -euo pipefail
cd "$(dirname "$0")/.."
tests/setup.sh
exec target/venv/bin/python tests/bench.py "$@"
