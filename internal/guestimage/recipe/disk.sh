#!/bin/bash
# disk.sh makes a disk from a folder: an ext4 partition that boots by BIOS and by UEFI.
#
#   disk.sh ROOT SIZE CORE BOOT ESP OUT
#
# SIZE	of the partition, as mke2fs reads it
# CORE	GRUB's core image, which stands in the gap before the partition
# BOOT	GRUB's boot sector
# ESP	the file system that UEFI boots from, which stands before the partition too: the partition can grow
set -euo pipefail
root=$1 size=$2 core=$3 boot=$4 esp=$5 out=$6
raw=$out.raw part=$out.part
trap 'rm -f "$raw" "$part"' EXIT
# In sectors of 512 bytes.
esp_start=2048 start=6144
esp_sectors=$(($(stat -c %s "$esp") / 512))

# GRUB of Debian 12 reads neither of the two features that newer ext4 tools switch on.
features='^metadata_csum_seed,^orphan_file'
if ! mke2fs -q -t ext4 -O "$features" -L root -m 0 -d "$root" "$part" "$size" 2>/dev/null; then
  rm -f "$part"
  mke2fs -q -t ext4 -L root -m 0 -d "$root" "$part" "$size" # tools that do not know the features
fi
sectors=$(($(stat -c %s "$part") / 512))
truncate -s $(((start + sectors) * 512)) "$raw"
printf 'label: dos\nstart=%d, size=%d, type=83, bootable\nstart=%d, size=%d, type=ef\n' "$start" "$sectors" "$esp_start" "$esp_sectors" | sfdisk --quiet --no-tell-kernel "$raw"
dd if="$part" of="$raw" bs=1M seek=$((start / 2048)) conv=notrunc,sparse status=none
dd if="$esp" of="$raw" bs=512 seek="$esp_start" conv=notrunc status=none
if (($(stat -c %s "$core") > (esp_start - 1) * 512 || esp_sectors > start - esp_start)); then
  echo "disk.sh: $core or $esp does not fit before the partition" >&2
  exit 1
fi
# The boot sector reads sector 1, and that the rest of the core image: both are GRUB's defaults. Bytes 440 on are the
# partition table's.
dd if="$boot" of="$raw" bs=1 count=440 conv=notrunc status=none
dd if="$core" of="$raw" bs=512 seek=1 conv=notrunc status=none
qemu-img convert -f raw -O qcow2 "$raw" "$out.new"
mv "$out.new" "$out"
