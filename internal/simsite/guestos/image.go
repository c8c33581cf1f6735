package guestos

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

// commandTable returns the closed set of commands. The folder is where distributions keep each.
func commandTable() map[string]command {
	return map[string]command{
		"/usr/bin/cat": cat, "/usr/bin/tee": tee, "/usr/bin/cp": cp, "/usr/bin/mv": mv, "/usr/bin/rm": rm, "/usr/bin/rmdir": rmdir,
		"/usr/bin/mkdir": mkdir, "/usr/bin/touch": touch, "/usr/bin/chmod": chmod, "/usr/bin/chown": chown, "/usr/bin/chgrp": chown,
		"/usr/bin/ln": ln, "/usr/bin/install": install, "/usr/bin/ls": ls, "/usr/bin/stat": stat, "/usr/bin/readlink": readlink,
		"/usr/bin/realpath": readlink, "/usr/bin/mktemp": mktemp, "/usr/bin/basename": basename, "/usr/bin/dirname": basename,
		"/usr/bin/truncate": truncate, "/usr/bin/find": find, "/usr/bin/sync": succeed, "/usr/bin/true": succeed, "/usr/bin/false": refuse,
		"/usr/bin/head": head, "/usr/bin/tail": head, "/usr/bin/wc": wc, "/usr/bin/cut": cut, "/usr/bin/tr": tr, "/usr/bin/grep": grep,
		"/usr/bin/egrep": grep, "/usr/bin/fgrep": grep, "/usr/bin/sed": sed, "/usr/bin/awk": awk, "/usr/bin/sort": sortLines, "/usr/bin/uniq": uniq,
		"/usr/bin/md5sum": checksum, "/usr/bin/sha1sum": checksum, "/usr/bin/sha256sum": checksum, "/usr/bin/sha512sum": checksum,
		"/usr/bin/base64": base64Command, "/usr/bin/od": od, "/usr/bin/cmp": cmp, "/usr/bin/diff": cmp, "/usr/bin/seq": seq, "/usr/bin/xargs": xargs,
		"/usr/bin/echo": echoCommand, "/usr/bin/sh": shell, "/usr/bin/bash": shell, "/usr/bin/dash": shell, "/usr/bin/env": env, "/usr/bin/printenv": env,
		"/usr/bin/timeout": timeout, "/usr/bin/nohup": prefix, "/usr/bin/setsid": prefix, "/usr/bin/nice": prefix, "/usr/bin/ionice": prefix,
		"/usr/bin/sudo": prefix, "/usr/bin/sleep": sleepCommand, "/usr/bin/id": id, "/usr/bin/whoami": id, "/usr/bin/passwd": passwd,
		"/usr/sbin/chpasswd": chpasswd, "/usr/sbin/usermod": usermod, "/usr/sbin/useradd": useradd, "/usr/sbin/userdel": userdel, "/usr/bin/getent": getent,
		"/usr/bin/hostname": hostname, "/usr/bin/hostnamectl": hostnamectl, "/usr/bin/uname": uname, "/usr/bin/date": date, "/usr/bin/timedatectl": timedatectl,
		"/usr/bin/chronyc": chronyc, "/usr/sbin/sysctl": sysctl, "/usr/bin/logger": logger, "/usr/bin/journalctl": journalctl, "/usr/sbin/reboot": reboot,
		"/usr/sbin/poweroff": reboot, "/usr/sbin/halt": reboot, "/usr/sbin/shutdown": reboot, "/usr/bin/uptime": uptimeCommand, "/usr/sbin/ip": ip,
		"/usr/bin/systemctl": systemctl, "/usr/sbin/service": service, "/usr/bin/cloud-init": cloudInitCommand, "/usr/sbin/nft": nft,
		"/usr/sbin/iptables": iptables, "/usr/sbin/ip6tables": iptables, "/usr/sbin/iptables-save": iptablesSave, "/usr/sbin/ip6tables-save": iptablesSave,
		"/usr/sbin/iptables-restore": iptablesRestore, "/usr/sbin/ip6tables-restore": iptablesRestore, "/usr/bin/firewall-cmd": firewallCmd,
		"/usr/sbin/ufw": ufw, "/usr/sbin/sshd": sshd, "/usr/bin/ssh-keygen": sshKeygen,
	}
}

// Commands returns the names of the commands that images have, sorted.
func Commands() []string {
	var names []string
	for file := range commandTable() {
		names = append(names, path.Base(file))
	}
	slices.Sort(names)
	return names
}

// NewImage makes an image's disk.
func NewImage(o ImageOptions) (*Image, error) {
	if !slices.Contains(Distributions(), o.Distribution) {
		return nil, fmt.Errorf("distribution %q is not known: use one of %v", o.Distribution, Distributions())
	}
	for _, name := range o.Without {
		if !slices.Contains(Commands(), name) {
			return nil, fmt.Errorf("command %q is not known, so an image cannot be without it: use one of %s", name, strings.Join(Commands(), " "))
		}
	}
	image := &Image{Distribution: o.Distribution, commands: map[string]command{}, units: units(o.Distribution)}
	// The image is built through a file system that no guest owns afterwards.
	builder := &Machine{image: image}
	builder.disk = &fileSystem{machine: builder, root: &node{mode: fs.ModeDir | 0o755, children: map[string]*node{}, mtime: builtAt()}}
	builder.offset = time.Until(builtAt())
	b := &imageBuilder{disk: builder.disk}

	for _, dir := range strings.Fields(`/usr/bin /usr/sbin /usr/lib/systemd/system /usr/local/bin /usr/local/sbin /etc/ssh /etc/ssh/sshd_config.d /etc/cloud/cloud.cfg.d
		/etc/systemd/system /etc/sysctl.d /etc/nftables /etc/ufw /etc/firewalld /etc/profile.d /etc/cron.d /root /root/.ssh /home /var/lib/cloud/instance
		/var/log /var/lib /var/tmp /var/spool /proc/sys/kernel/random /proc/1 /sys/class/dmi/id /dev /run/systemd/system /run/lock /run/user /run/sshd /run/cloud-init /tmp /opt /srv /mnt /usr/share/zoneinfo /boot`) {
		b.dir(dir, 0o755)
	}
	for link, target := range map[string]string{"/bin": "usr/bin", "/sbin": "usr/sbin", "/lib": "usr/lib", "/var/run": "/run", "/var/lock": "/run/lock",
		"/etc/localtime": "/usr/share/zoneinfo/Etc/UTC", "/proc/self": "1"} {
		b.try(builder.disk.symlink(target, link))
	}
	b.mode("/tmp", fs.ModeSticky|0o777)
	b.mode("/var/tmp", fs.ModeSticky|0o777)
	b.mode("/root", 0o700)
	b.mode("/root/.ssh", 0o700)

	missing := absent(o)
	for file, run := range commandTable() {
		if slices.Contains(missing, path.Base(file)) {
			continue
		}
		image.commands[file] = run
		b.try(builder.disk.writeFile(file, []byte("\x7fELF simulated\n"), 0o755))
		b.try(builder.disk.change(file, true, func(n *node) { n.command = file }))
	}
	for file, text := range files(o) {
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(file, "/root/") || strings.HasPrefix(file, "/etc/shadow") || strings.HasSuffix(file, "_key") || strings.HasPrefix(file, "/etc/ssh/sshd_config") {
			mode = 0o600
		}
		b.try(builder.disk.writeFile(file, []byte(text), mode))
	}
	for file, make := range dynamicFiles() {
		b.try(builder.disk.writeFile(file, nil, 0o444))
		b.try(builder.disk.change(file, true, func(n *node) {
			n.dynamic = make
			if file == "/proc/sys/kernel/hostname" {
				n.mode = 0o644
			}
		}))
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty", "console"} {
		b.try(builder.disk.writeFile("/dev/"+name, nil, 0o666))
		b.try(builder.disk.change("/dev/"+name, true, func(n *node) { n.mode |= fs.ModeDevice | fs.ModeCharDevice }))
	}
	if b.err != nil {
		return nil, b.err
	}
	image.root = release(builder.disk.root)
	if o.Distribution == Rocky9 {
		image.firewalld = &firewalldState{defaultZone: "public", interfaces: []string{"ens192"}, runtime: map[string]firewalldZone{}, permanent: map[string]firewalldZone{
			"public":  {target: "default", items: []string{"service:ssh", "service:dhcpv6-client", "service:cockpit"}},
			"trusted": {target: "ACCEPT"}, "drop": {target: "DROP"}, "internal": {target: "default", items: []string{"service:ssh"}}}}
	}
	return image, nil
}

type imageBuilder struct {
	disk *fileSystem
	err  error
}

func (b *imageBuilder) try(err error) {
	if b.err == nil {
		b.err = err
	}
}
func (b *imageBuilder) dir(name string, mode fs.FileMode) { b.try(b.disk.mkdirAll(name, mode)) }
func (b *imageBuilder) mode(name string, mode fs.FileMode) {
	b.try(b.disk.change(name, true, func(n *node) { n.mode = n.mode.Type() | mode }))
}

// release takes the builder's ownership off a tree, so that guests copy what they change.
func release(n *node) *node {
	n.owner = nil
	for _, child := range n.children {
		release(child)
	}
	return n
}

func builtAt() time.Time { return time.Date(2025, 3, 1, 12, 0, 0, 0, time.UTC) }

// absent returns the commands that an image lacks: those of other distributions, and those it was asked to lack.
func absent(o ImageOptions) []string {
	missing := slices.Clone(o.Without)
	if o.Distribution != Ubuntu2404 {
		missing = append(missing, "ufw")
	}
	if o.Distribution != Rocky9 {
		missing = append(missing, "firewall-cmd", "chronyc")
	}
	if o.Distribution == Rocky9 {
		missing = append(missing, "iptables", "ip6tables", "iptables-save", "ip6tables-save", "iptables-restore", "ip6tables-restore", "dash")
	}
	for _, name := range o.Without {
		for _, family := range []string{"iptables", "ip6tables"} {
			if name == family {
				missing = append(missing, family+"-save", family+"-restore")
			}
		}
	}
	return missing
}

func units(d Distribution) map[string]unit {
	on, off := unit{enabled: true}, unit{}
	all := map[string]unit{
		"cloud-init.service": on, "cloud-final.service": on, "cloud-config.service": on, "systemd-journald.service": {static: true},
		"systemd-logind.service": {static: true}, "nftables.service": off,
	}
	switch d {
	case Rocky9:
		all["sshd.service"] = on
		all["chronyd.service"] = on
		all["firewalld.service"] = on
		all["crond.service"] = on
		all["rsyslog.service"] = on
		all["NetworkManager.service"] = on
	default:
		all["ssh.service"] = on
		all["sshd.service"] = unit{alias: "ssh.service"}
		all["systemd-timesyncd.service"] = on
		all["cron.service"] = on
		all["networking.service"] = on
	}
	if d == Ubuntu2404 {
		all["ufw.service"] = on
		all["rsyslog.service"] = on
	}
	return all
}

func osRelease(d Distribution) string {
	switch d {
	case Ubuntu2404:
		return "PRETTY_NAME=\"Ubuntu 24.04.1 LTS\"\nNAME=\"Ubuntu\"\nVERSION_ID=\"24.04\"\nVERSION=\"24.04.1 LTS (Noble Numbat)\"\nVERSION_CODENAME=noble\nID=ubuntu\nID_LIKE=debian\n"
	case Rocky9:
		return "NAME=\"Rocky Linux\"\nVERSION=\"9.4 (Blue Onyx)\"\nID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\nVERSION_ID=\"9.4\"\nPLATFORM_ID=\"platform:el9\"\nPRETTY_NAME=\"Rocky Linux 9.4 (Blue Onyx)\"\n"
	default:
		return "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nVERSION=\"12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n"
	}
}

// ImagePassword is root's password in every image: one that whoever made the image knows, so that a load must replace it.
const ImagePassword = "image-password"

// files are the image's files, with what images are apt to be left with: a known root password, a private key, a key of
// whoever made the image, a shell history.
func files(o ImageOptions) map[string]string {
	makersKey := "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJg4QmVydGhTaW11bGF0ZWRJbWFnZU1ha2Vyc0tleXg9 maker@image"
	account := map[Distribution]string{Debian12: "debian", Ubuntu2404: "ubuntu", Rocky9: "rocky"}[o.Distribution]
	all := map[string]string{
		"/etc/os-release":                       osRelease(o.Distribution),
		"/etc/image-release":                    o.Revision + "\n",
		"/etc/hostname":                         "template\n",
		"/etc/hosts":                            "127.0.0.1\tlocalhost\n127.0.1.1\ttemplate\n::1\tlocalhost ip6-localhost ip6-loopback\n",
		"/etc/resolv.conf":                      "nameserver 192.0.2.53\n",
		"/etc/machine-id":                       "b0ee7f6d5a3c4a4a9f3f5ac1d2e3f405\n",
		"/etc/passwd":                           "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\nsshd:x:105:65534::/run/sshd:/usr/sbin/nologin\n" + account + ":x:1000:1000::/home/" + account + ":/bin/bash\n",
		"/etc/group":                            "root:x:0:\ndaemon:x:1:\nsudo:x:27:" + account + "\n" + account + ":x:1000:\n",
		"/etc/shadow":                           "root:" + hashPassword(ImagePassword, "imageimageimage0") + ":20000:0:99999:7:::\ndaemon:*:20000:0:99999:7:::\nsshd:!:20000::::::\n" + account + ":!:20000:0:99999:7:::\n",
		"/etc/ssh/sshd_config":                  "Include /etc/ssh/sshd_config.d/*.conf\nPermitRootLogin yes\nPasswordAuthentication yes\nUsePAM yes\nSubsystem sftp /usr/lib/openssh/sftp-server\n",
		"/etc/sudoers":                          "root ALL=(ALL:ALL) ALL\n",
		"/etc/nftables.conf":                    "#!/usr/sbin/nft -f\n\nflush ruleset\n\ntable inet filter {\n\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n\t}\n}\n",
		"/etc/cloud/cloud.cfg":                  "disable_root: false\npreserve_hostname: false\n",
		"/root/.ssh/authorized_keys":            strings.TrimRight(o.AuthorizedKeys, "\n") + "\n" + makersKey + "\n",
		"/root/.ssh/id_ed25519":                 "-----BEGIN OPENSSH PRIVATE KEY-----\nc2ltdWxhdGVkOiB0aGUga2V5IG9mIHdob2V2ZXIgbWFkZSB0aGUgaW1hZ2U=\n-----END OPENSSH PRIVATE KEY-----\n",
		"/root/.bash_history":                   "apt-get install -y cloud-init\npasswd root\n",
		"/root/.profile":                        "mesg n 2> /dev/null || true\n",
		"/proc/version":                         "Linux version " + kernelRelease + " (simulated)\n",
		"/proc/cmdline":                         "BOOT_IMAGE=/boot/vmlinuz-" + kernelRelease + " root=/dev/sda1 ro quiet\n",
		"/proc/1/comm":                          "systemd\n",
		"/proc/1/environ":                       "",
		"/proc/sys/kernel/osrelease":            kernelRelease + "\n",
		"/proc/sys/kernel/ostype":               "Linux\n",
		"/proc/loadavg":                         "0.00 0.00 0.00 1/80 1234\n",
		"/proc/meminfo":                         "MemTotal:        2014208 kB\nMemFree:         1500000 kB\nMemAvailable:    1700000 kB\n",
		"/proc/cpuinfo":                         "processor\t: 0\nmodel name\t: Simulated CPU\n",
		"/proc/mounts":                          "/dev/sda1 / ext4 rw,relatime 0 0\nproc /proc proc rw 0 0\ntmpfs /run tmpfs rw 0 0\n",
		"/sys/class/dmi/id/sys_vendor":          "VMware, Inc.\n",
		"/sys/class/dmi/id/product_name":        "VMware Virtual Platform\n",
		"/var/log/syslog":                       "",
		"/var/lib/cloud/instance/boot-finished": "0 - simulated\n",
		"/var/log/cloud-init.log":               "",
	}
	if o.Distribution == Debian12 {
		all["/etc/debian_version"] = "12.7\n"
	}
	if o.Distribution == Rocky9 {
		all["/etc/redhat-release"] = "Rocky Linux release 9.4 (Blue Onyx)\n"
	}
	return all
}

func dynamicFiles() map[string]func(*Machine) []byte {
	return map[string]func(*Machine) []byte{
		"/proc/sys/kernel/random/boot_id": func(m *Machine) []byte { return []byte(m.BootID() + "\n") },
		"/proc/sys/kernel/random/uuid":    func(*Machine) []byte { return []byte(newUUID() + "\n") },
		"/proc/sys/kernel/hostname":       func(m *Machine) []byte { return []byte(m.Hostname() + "\n") },
		"/proc/uptime": func(m *Machine) []byte {
			return fmt.Appendf(nil, "%.2f %.2f\n", m.uptime().Seconds(), m.uptime().Seconds())
		},
		"/proc/stat": func(m *Machine) []byte {
			return fmt.Appendf(nil, "cpu 0 0 0 0\nbtime %d\n", m.Now().Add(-m.uptime()).Unix())
		},
	}
}
