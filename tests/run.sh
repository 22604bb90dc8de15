#!/usr/bin/env bash
# Everything a change must pass: house rules, unit tests, then real processes and real clients.
# With `e2e` only the last; with `powercut` or `rot` only that, longer. Ends with the test runner's summary.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-all}
[ $# -gt 0 ] && shift

tests/setup.sh
if [ "$what" = all ]; then
  make --no-print-directory check
  make --no-print-directory unit
  make --no-print-directory build
fi
case $what in powercut | rot) exec target/venv/bin/python "tests/e2e/$what.py" "$@" ;; esac
exec target/venv/bin/python -m pytest tests/e2e -q -x --durations=15 "$@"
