#!/bin/bash
# root.sh gathers the small guest's files from a Debian tree.
#
#   root.sh TREE ROOT VERSION
#
# ROOT	a folder inside TREE that does not exist yet
# VERSION	the kernel's
set -euo pipefail
tree=$1 root=$2 version=$3
here=$(cd "$(dirname "$0")" && pwd)

# What each of the two file systems loads: the first to reach the disk, the second for all else.
boot=(virtio_pci virtio_blk ext4)
later=(virtio_net virtio_rng isofs vfat nls_ascii nls_cp437 sr_mod ata_piix ahci nf_tables nft_ct nf_conntrack)

mkdir -p "$root"/{bin,sbin,dev,proc,sys,run,tmp,mnt,root/.ssh,var/log,var/lib,boot/grub,etc/ssh,etc/rc.d,usr/bin,usr/sbin,lib/modules}
chmod 700 "$root/root" "$root/root/.ssh"
chmod 1777 "$root/tmp"

# Programs, with the libraries that the loader names.
cp "$tree/bin/busybox" "$root/bin/busybox"
chroot "$tree" /bin/busybox --list | while read -r applet; do
  [[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
done
ln -s /bin/busybox "$root/sbin/init"
ln -s /bin/busybox "$root/sbin/modprobe"
security=/lib/x86_64-linux-gnu/security
programs=(/usr/sbin/sshd /usr/bin/ssh-keygen /usr/sbin/nft /usr/sbin/chpasswd "$security/pam_unix.so")
for program in "${programs[@]}"; do
  mkdir -p "$root$(dirname "$program")"
  cp "$tree$program" "$root$program"
  chroot "$tree" ldd "$program" | grep -oE '/[^ ]+' | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$tree$library" "$root$library"
  done
done

# modules TO NAME...: copy modules and what they need; prints their paths, in the order in which they load.
modules() {
  local to=$1
  shift
  for name in "$@"; do
    chroot "$tree" modprobe --quiet --show-depends -S "$version" "$name" || true # built in, or not there
  done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | while read -r module; do
    mkdir -p "$to$(dirname "$module")"
    cp "$tree$module" "$to$module"
    echo "$module"
  done
}
modules "$root" "${boot[@]}" "${later[@]}" >/dev/null
cp "$tree/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} "$root/lib/modules/$version/"
chroot "$tree" depmod -b "/${root#"$tree"/}" "$version"

cp "$tree/boot/vmlinuz-$version" "$root/boot/vmlinuz"
initrd=$tree/initrd.new
mkdir -p "$initrd"/{bin,dev,proc,sys,root}
cp "$tree/bin/busybox" "$initrd/bin/busybox"
modules "$initrd" "${boot[@]}" >"$initrd/modules"
install -m 755 "$here/initrd" "$initrd/init"
chroot "$tree" /bin/sh -c 'cd /initrd.new && find . | busybox cpio -o -H newc 2>/dev/null' >"$root/boot/initrd"
rm -rf "$initrd"
