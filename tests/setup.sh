#!/usr/bin/env bash
# Installs what the tests need and the machine lacks: Debian packages, and Python clients in a
# virtual environment under target/. Safe to run again; does nothing when all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A package_of=(
  [fio]=fio [nbdinfo]=libnbd-bin [nbdcopy]=libnbd-bin [qemu-io]=qemu-utils [qemu-img]=qemu-utils
  [qemu-nbd]=qemu-utils [mkfs.xfs]=xfsprogs [xfs_growfs]=xfsprogs [mkfs.ext4]=e2fsprogs
  [losetup]=util-linux [qemu-storage-daemon]=qemu-system-common [nbdfuse]=libnbd-bin [ip]=iproute2 [git]=git [cc]=gcc [python3]=python3
)
missing=()
for command in "${!package_of[@]}"; do
  command -v "$command" >/dev/null || missing+=("${package_of[$command]}")
done
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing: ${missing[*]}"
  sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
  $sudo apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

venv=target/venv
if ! cmp -s tests/requirements.txt "$venv/installed.txt"; then
  mkdir -p target
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/requirements.txt
  cp tests/requirements.txt "$venv/installed.txt"
fi
