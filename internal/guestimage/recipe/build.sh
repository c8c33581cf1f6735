#!/bin/bash
# build.sh makes both guests' disks from Debian's packages.
#
#   build.sh TREE MIRROR OUT
#
# TREE	a folder that does not exist yet; it is left for the caller to remove
# OUT	the folder that takes debian.qcow2, and small.tar with core.img, boot.img and esp.img for small.sh
#
# No loop device is used: file systems are made from folders.
set -euo pipefail
tree=$1 mirror=$2 out=$3
here=$(cd "$(dirname "$0")" && pwd)
suite=bookworm

step() { printf 'berth: %s\n' "$*"; }

step "debootstrap: Debian $suite from $mirror"
debootstrap --variant=minbase "$suite" "$tree" "$mirror"

in_tree() {
  chroot "$tree" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive \
    ${http_proxy:+http_proxy="$http_proxy"} "$@"
}

step "the packages of the full Debian"
cp -a "$here/debian/root/." "$tree/"
(cd "$here/debian/root" && find . -type f) | while read -r file; do chown 0:0 "$tree/$file"; done
# Nothing is started in the tree, and nothing is lost with the power: the whole is thrown away then.
printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d"
chmod 755 "$tree/usr/sbin/policy-rc.d"
echo force-unsafe-io >"$tree/etc/dpkg/dpkg.cfg.d/berth-build"
cp /etc/resolv.conf "$tree/etc/resolv.conf"
in_tree apt-get -q update
mapfile -t packages < <(grep -v '^#' "$here/debian/packages")
tools=(grub-efi-amd64-bin mtools) # for the disks, not on them
in_tree apt-get -q install -y --no-install-recommends "${packages[@]}" "${tools[@]}"
rm "$tree/usr/sbin/policy-rc.d" "$tree/etc/dpkg/dpkg.cfg.d/berth-build" "$tree/etc/resolv.conf"
version=$(basename "$tree"/lib/modules/*)

step "the boot loader"
grub="$tree/usr/lib/grub/i386-pc"
printf 'configfile (hd0,msdos1)/boot/grub/grub.cfg\n' >"$tree/tmp/core.cfg"
mkimage() { in_tree grub-mkimage -p '(hd0,msdos1)/boot/grub' -c /tmp/core.cfg "$@" part_msdos ext2 configfile linux echo serial terminal test; }
mkimage -O i386-pc -o /tmp/core.img biosdisk
mkimage -O x86_64-efi -o /tmp/bootx64.efi
in_tree mformat -C -f 1440 -i /tmp/esp.img ::
in_tree mmd -i /tmp/esp.img ::/EFI ::/EFI/BOOT
in_tree mcopy -i /tmp/esp.img /tmp/bootx64.efi ::/EFI/BOOT/BOOTX64.EFI
cp "$tree/tmp/core.img" "$grub/boot.img" "$tree/tmp/esp.img" "$out/"
rm "$tree"/tmp/{core.cfg,core.img,bootx64.efi,esp.img}
in_tree apt-get -q purge -y "${tools[@]}"

step "the small guest's files"
"$here/small/root.sh" "$tree" "$tree/small" "$version"
tar -C "$tree/small" -cf "$out/small.tar" .
rm -rf "${tree:?}/small"

step "the full Debian's disk"
ln -sf "vmlinuz-$version" "$tree/boot/vmlinuz"
ln -sf "initrd.img-$version" "$tree/boot/initrd"
in_tree systemctl enable systemd-networkd.service ssh.service nftables.service
in_tree systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer e2scrub_all.timer e2scrub_reap.service
rm -f "$tree"/etc/ssh/ssh_host_*
: >"$tree/etc/machine-id"
echo debian >"$tree/etc/hostname"
rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/* "$tree"/var/log/bootstrap.log
"$here/disk.sh" "$tree" 2G "$out/core.img" "$out/boot.img" "$out/esp.img" "$out/debian.qcow2"
