#!/bin/bash
# small.sh makes the small guest's disk.
#
#   small.sh PARTS EXTRA WORK OUT
#
# PARTS	the folder with small.tar, core.img, boot.img and esp.img
# EXTRA	a folder whose files go over the guest's; may be empty
# WORK	a folder that does not exist yet; it is left for the caller to remove
set -euo pipefail
parts=$1 extra=$2 work=$3 out=$4
mkdir "$work"
tar -C "$work" -xf "$parts/small.tar"
here=$(cd "$(dirname "$0")" && pwd)
cp -a "$here/small/root/." "$extra/." "$work/"
chown -R 0:0 "$work"
"$here/disk.sh" "$work" 96M "$parts/core.img" "$parts/boot.img" "$parts/esp.img" "$out"
