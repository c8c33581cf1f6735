package linux

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"berth/osmodules/climb"
)

func TestFirewall(t *testing.T) {
	t.Parallel()
	both := values{"SOURCES": "10.1.0.0/16 2001:db8::/32"}
	for name, c := range map[string]struct {
		values values
		guest  func(*sandbox)
		result string
		detail string
		check  func(*testing.T, *sandbox)
	}{
		"nftables": {both, func(s *sandbox) { s.systemd(); s.tool("nft", ":") }, "done", "nftables: port 22 from 10.1.0.0/16 10.9.8.7/32 2001:db8::/32",
			func(t *testing.T, s *sandbox) {
				rules := s.read("etc/berth/firewall.nft")
				inOrder(t, rules, "add table inet berth\ndelete table inet berth\ntable inet berth {", "ct state established,related accept",
					"ip saddr 10.1.0.0/16 accept", "ip saddr 10.9.8.7/32 accept", "ip6 saddr 2001:db8::/32 accept", "tcp dport 22 drop")
				require.Contains(t, s.calls(), "nft -f "+s.root+"/etc/berth/firewall.nft")
				require.Contains(t, s.read("etc/systemd/system/berth-firewall.service"), "ExecStart="+s.bin+"/nft -f /etc/berth/firewall.nft\n")
				require.Contains(t, s.calls(), "systemctl enable berth-firewall.service")
			}},
		"nftables refuses": {both, func(s *sandbox) {
			s.systemd()
			s.tool("nft", `case $1 in -f) echo "Error: no such thing" >&2; exit 1 ;; esac`)
		}, "reload", "nft refused the rules: Error: no such thing", func(*testing.T, *sandbox) {}},
		"nftables without systemd": {both, func(s *sandbox) { s.tool("nft", ":") }, "warned", "without systemd the rules end with this boot", func(*testing.T, *sandbox) {}},
		"nftables there but not usable, iptables is": {both, func(s *sandbox) {
			s.systemd()
			s.tool("nft", "exit 1")
			s.iptables("iptables")
		}, "done", "iptables: ", func(*testing.T, *sandbox) {}},
		"firewalld": {both, func(s *sandbox) {
			s.systemd()
			s.tool("nft", "echo must not be used; exit 1")
			s.tool("firewall-cmd", `case "$*" in
--state) echo running ;;
--get-default-zone) echo public ;;
--get-active-zones) printf 'public (default)\n  interfaces: eth0\nlab\n  interfaces: eth1\n' ;;
*--get-target) echo default ;;
esac`)
		}, "done", "in zone public lab", func(t *testing.T, s *sandbox) {
			for _, zone := range []string{"public", "lab"} {
				inOrder(t, s.calls(),
					`firewall-cmd --permanent --zone=`+zone+` --add-rich-rule=rule family="ipv4" source address="10.1.0.0/16" port port="22" protocol="tcp" accept`,
					`firewall-cmd --permanent --zone=`+zone+` --add-rich-rule=rule family="ipv4" source address="10.9.8.7/32" port port="22" protocol="tcp" accept`,
					`firewall-cmd --permanent --zone=`+zone+` --add-rich-rule=rule family="ipv6" source address="2001:db8::/32" port port="22" protocol="tcp" accept`,
					`firewall-cmd --permanent --zone=`+zone+` --remove-service=ssh`, "firewall-cmd --reload")
			}
			require.NotContains(t, s.calls(), "nft ")
		}},
		"firewalld with a zone that lets in everything": {both, func(s *sandbox) {
			s.tool("firewall-cmd", `case "$*" in --get-default-zone) echo trusted ;; *--get-target) echo ACCEPT ;; esac`)
		}, "warned", "zone trusted lets in everything", func(*testing.T, *sandbox) {}},
		"firewalld there but not running, ufw active": {both, func(s *sandbox) {
			s.tool("firewall-cmd", "exit 252")
			s.tool("ufw", `case $1 in status) echo "Status: active" ;; esac`)
		}, "done", "ufw: port 22 from", func(t *testing.T, s *sandbox) {
			inOrder(t, s.calls(), "ufw prepend allow proto tcp from 10.1.0.0/16 to any port 22", "ufw prepend allow proto tcp from 10.9.8.7/32 to any port 22",
				"ufw --force delete allow 22/tcp", "ufw --force delete allow OpenSSH", "ufw deny proto tcp from any to any port 22")
		}},
		"ufw without prepend": {both, func(s *sandbox) {
			s.tool("ufw", `case $1 in status) echo "Status: active" ;; prepend) exit 1 ;; esac`)
		}, "done", "ufw: ", func(t *testing.T, s *sandbox) {
			inOrder(t, s.calls(), "ufw allow proto tcp from 10.9.8.7/32 to any port 22", "ufw deny proto tcp from any to any port 22")
		}},
		"ufw there but inactive, iptables": {both, func(s *sandbox) {
			s.systemd()
			s.tool("ufw", `echo "Status: inactive"`)
			s.iptables("iptables", "ip6tables")
		}, "done", "iptables and ip6tables: ", func(t *testing.T, s *sandbox) {
			four, six := s.read("etc/berth/firewall.iptables"), s.read("etc/berth/firewall.ip6tables")
			inOrder(t, four, "*filter", ":berth - [0:0]", "ESTABLISHED,RELATED -j ACCEPT", "-s 10.1.0.0/16 -j ACCEPT", "-s 10.9.8.7/32 -j ACCEPT", "-A berth -j DROP",
				"-I INPUT 1 -p tcp --dport 22 -j berth", "COMMIT")
			require.NotContains(t, four, "2001:")
			inOrder(t, six, "-s 2001:db8::/32 -j ACCEPT", "-A berth -j DROP")
			require.NotContains(t, six, "10.1.")
			inOrder(t, s.calls(), "iptables-restore --noflush", "iptables -w -I INPUT 1 -p tcp --dport 22 -j berth", "ip6tables -w -I INPUT 1")
			require.NotContains(t, s.calls(), "fed iptables-restore -I INPUT", "the jump is put once, not with every run")
			inOrder(t, s.read("etc/systemd/system/berth-firewall.service"), "ExecStart="+s.bin+"/iptables-restore --noflush /etc/berth/firewall.iptables",
				"ExecStart="+s.bin+"/ip6tables-restore --noflush /etc/berth/firewall.ip6tables")
		}},
		"none": {both, func(*sandbox) {}, "warned", "port 22 is open to whoever reaches it", func(*testing.T, *sandbox) {}},
		"only our own address, by IPv6, on another port": {nil, func(s *sandbox) {
			s.systemd()
			s.tool("nft", ":")
			s.env = append(s.env, "SSH_CONNECTION=2001:db8::7 50000 2001:db8::5 2222")
		}, "done", "nftables: port 2222 from 2001:db8::7/128", func(*testing.T, *sandbox) {}},
		"an IPv4 address in IPv6 clothes": {nil, func(s *sandbox) {
			s.systemd()
			s.tool("nft", ":")
			s.env = append(s.env, "SSH_CONNECTION=::ffff:10.3.3.3 50000 ::ffff:10.0.0.5 22")
		}, "done", "port 22 from 10.3.3.3/32", func(*testing.T, *sandbox) {}},
		"an sshd that does not say": {values{"FROM": "192.0.2.1", "PORT": "2022"}, func(s *sandbox) {
			s.systemd()
			s.tool("nft", ":")
			s.env = append(s.env, "SSH_CONNECTION=")
		}, "done", "port 2022 from 192.0.2.1/32", func(*testing.T, *sandbox) {}},
	} {
		t.Run(name, func(t *testing.T) {
			eachShell(t, func(t *testing.T, shell ...string) {
				s := newSandbox(t, shell...)
				c.guest(s)
				for range 2 { // the second run must say the same as the first
					o := s.script("firewall.sh", c.values, "")
					require.Equal(t, c.result, o.result, "%+v", o)
					require.Contains(t, o.detail, c.detail)
				}
				c.check(t, s)
			})
		})
	}
}

// iptables makes fakes that remember the jump.
func (s *sandbox) iptables(names ...string) {
	for _, name := range names {
		s.tool(name, `case "$*" in
*-C*) test -e "$LOG.`+name+`" ;;
*-I*) touch "$LOG.`+name+`" ;;
esac`)
		s.tool(name+"-restore", `while IFS= read -r rule; do printf 'fed `+name+`-restore %s\n' "$rule" >>$LOG; done`)
	}
}

func inOrder(t *testing.T, text string, parts ...string) {
	t.Helper()
	at := 0
	for _, part := range parts {
		i := strings.Index(text[at:], part)
		require.GreaterOrEqual(t, i, 0, "%q is missing, or not after what stands before it, in:\n%s", part, text)
		at += i + len(part)
	}
}

func TestPublicAddress(t *testing.T) {
	const route = "default via 10.0.0.1 dev ens192 proto dhcp src 10.0.0.5 metric 100"
	for name, c := range map[string]struct {
		values  values
		ip      string // the fake's body
		result  string
		address string
		detail  string
	}{
		"of the interface with the default route": {nil, `case "$*" in
"-4 route show default") echo "` + route + `" ;;
"-4 -o addr show dev ens192 scope global") echo "2: ens192    inet 198.51.100.7/24 brd 198.51.100.255 scope global dynamic ens192\       valid_lft 1sec" ;;
esac`, "done", "198.51.100.7", "198.51.100.7 on ens192"},
		"of the interface that the image names": {values{"INTERFACE": "eth1"}, `case "$*" in
"-4 -o addr show dev eth1 scope global") echo "3: eth1    inet 203.0.113.9/24 scope global eth1" ;;
esac`, "done", "203.0.113.9", "203.0.113.9 on eth1"},
		"IPv6 where there is no IPv4": {nil, `case "$*" in
"-6 route show default") echo "default via fe80::1 dev eth0 metric 1024" ;;
"-6 -o addr show dev eth0 scope global") echo "2: eth0    inet6 2001:db8::9/64 scope global" ;;
esac`, "done", "2001:db8::9", "2001:db8::9 on eth0"},
		"that comes late": {values{"WAIT": "4"}, `test -e "$LOG.asked" || { touch "$LOG.asked"; exit 0; }
case "$*" in
"-4 route show default") echo "` + route + `" ;;
"-4 -o addr show dev ens192 scope global") echo "2: ens192    inet 198.51.100.7/24 scope global" ;;
esac`, "done", "198.51.100.7", ""},
		"the control address where there is no default route":    {nil, ":", "warned", "10.0.0.5", "no default route"},
		"not there on the interface that the image names at all": {values{"INTERFACE": "eth1"}, ":", "reload", "", "interface eth1 has no public address"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			s.tool("ip", c.ip)
			s.tool("sleep", ":")
			o := s.script("address.sh", c.values, "")
			require.Equal(t, c.result, o.result, "%+v", o)
			require.Equal(t, c.address, o.values["public-address"])
			require.Contains(t, o.detail, c.detail)
		})
	}
	t.Run("cannot be read without ip", func(t *testing.T) {
		require.Equal(t, "warned", newSandbox(t).script("address.sh", nil, "").result)
	})
}

func TestSSHD(t *testing.T) {
	const anywhere = "port 22\nlistenaddress 0.0.0.0:22\nlistenaddress [::]:22"
	units := func(enabled string) string {
		return `case "$*" in
is-system-running) echo running ;;
` + enabled + `
is-enabled*) exit 1 ;;
esac`
	}
	for name, c := range map[string]struct {
		systemctl string
		listens   string
		result    string
		detail    string
		check     func(*testing.T, *sandbox)
	}{
		"enabled and listening": {units(`"is-enabled ssh.service") echo enabled ;;`), anywhere, "done", "ssh.service is enabled", nil},
		"enabled by its socket": {units(`"is-enabled ssh.socket") echo enabled ;;`), "", "done", "ssh.socket is enabled", nil},
		"disabled": {units(`"is-enabled sshd.service") echo disabled; exit 1 ;;`), anywhere, "done", "sshd.service is enabled; it was not enabled",
			func(t *testing.T, s *sandbox) { require.Contains(t, s.calls(), "systemctl enable sshd.service") }},
		"disabled for good": {units(`"is-enabled sshd.service") echo masked; exit 1 ;;
"enable sshd.service") echo "no way" >&2; exit 1 ;;`), anywhere, "reload", "sshd.service cannot be enabled: no way", nil},
		"bound away from the control address": {units(`"is-enabled ssh.service") echo enabled ;;`), "port 22\nlistenaddress 198.51.100.7:22", "done", "left out 10.0.0.5, which was added",
			func(t *testing.T, s *sandbox) {
				inOrder(t, s.read("etc/ssh/sshd_config"), "ListenAddress 10.0.0.5:22\n", "ListenAddress 198.51.100.7\n", "Match User x\n")
			}},
		"bound to the control address only": {units(`"is-enabled ssh.service") echo enabled ;;`), "listenaddress 10.0.0.5:22", "done", "ssh.service is enabled",
			func(t *testing.T, s *sandbox) { require.NotContains(t, s.read("etc/ssh/sshd_config"), "Berth") }},
		"without systemd": {"", anywhere, "warned", "without systemd", nil},
	} {
		t.Run(name, func(t *testing.T) {
			eachShell(t, func(t *testing.T, shell ...string) {
				s := newSandbox(t, shell...)
				s.write("etc/ssh/sshd_config", "ListenAddress 198.51.100.7\nMatch User x\n")
				if c.systemctl != "" {
					s.tool("systemctl", c.systemctl)
				}
				s.tool("sshd", `case $1 in -T) printf '`+strings.ReplaceAll(c.listens, "\n", `\n`)+`\n' ;; esac`)
				o := s.script("sshd.sh", nil, "")
				require.Equal(t, c.result, o.result, "%+v", o)
				require.Contains(t, o.detail, c.detail)
				if c.check != nil {
					c.check(t, s)
				}
			})
		})
	}
	t.Run("a configuration that sshd refuses is put back", func(t *testing.T) {
		s := newSandbox(t)
		s.write("etc/ssh/sshd_config", "ListenAddress 198.51.100.7\n")
		s.systemd()
		s.tool("sshd", `case $1 in -T) echo listenaddress 198.51.100.7:22 ;; -t) echo bad >&2; exit 1 ;; esac`)
		require.Equal(t, "warned", s.script("sshd.sh", nil, "").result)
		require.Equal(t, "ListenAddress 198.51.100.7\n", s.read("etc/ssh/sshd_config"))
	})
}

func TestTime(t *testing.T) {
	const now = 1700000000
	clock := `off=0
test ! -e "$LOG.set" || off=$SET
case "$*" in *-s*) touch "$LOG.set"; exit 0 ;; esac
echo $((` + strconv.Itoa(now) + ` + OFF))`
	for name, c := range map[string]struct {
		off, after int
		guest      func(*sandbox)
		result     string
		detail     string
		called     string
	}{
		"right":                    {2, 2, (*sandbox).systemd, "done", "the clock is right, kept by systemd-timesyncd", ""},
		"right, by nobody's doing": {-3, -3, func(*sandbox) {}, "done", "the clock is right", ""},
		"an hour off":              {-3600, 1, (*sandbox).systemd, "done", "the clock was 3600 s off and was set, kept by systemd-timesyncd", "systemctl restart systemd-timesyncd"},
		"off, with chrony": {77, 0, func(s *sandbox) {
			s.tool("systemctl", `case "$*" in is-system-running) echo degraded ;; "is-active chronyd") : ;; *) exit 3 ;; esac`)
			s.tool("chronyc", ":")
		}, "done", "kept by chronyd", "chronyc makestep"},
		"off, and nobody keeps it":     {77, 0, func(*sandbox) {}, "warned", "no time service runs here", "date -u -s @1700000000"},
		"off, and cannot be mended":    {77, 77, (*sandbox).systemd, "warned", "is still 77 s off", ""},
		"off, with one to be switched": {77, 0, func(s *sandbox) { s.tool("timedatectl", ":") }, "done", "kept by timedatectl", "timedatectl set-ntp true"},
	} {
		t.Run(name, func(t *testing.T) {
			eachShell(t, func(t *testing.T, shell ...string) {
				s := newSandbox(t, shell...)
				c.guest(s)
				s.tool("date", "OFF="+strconv.Itoa(c.off)+"\ntest ! -e $LOG.set || OFF="+strconv.Itoa(c.after)+"\n"+strings.ReplaceAll(clock, "$SET", "0"))
				o := s.script("time.sh", values{"NOW": strconv.Itoa(now), "TOLERANCE": "3"}, "")
				require.Equal(t, c.result, o.result, "%+v", o)
				require.Contains(t, o.detail, c.detail)
				require.Contains(t, s.calls(), c.called)
			})
		})
	}
}

func TestRootPassword(t *testing.T) {
	eachShell(t, func(t *testing.T, shell ...string) {
		s := newSandbox(t, shell...)
		s.tool("chpasswd", `IFS= read -r given; printf 'fed %s\n' "$given" >>$LOG`)
		o := s.script("password.sh", values{"PASSWORD": "Sesame$(1)"}, "")
		require.Equal(t, "done", o.result, "%+v", o)
		require.Equal(t, "chpasswd \nfed root:Sesame$(1)\n", s.calls(), "it came by standard input, as it was")
		require.NotContains(t, o.detail+o.output, "Sesame")
	})
	t.Run("a chpasswd that fails tells no password", func(t *testing.T) {
		s := newSandbox(t)
		s.tool("chpasswd", `cat; exit 1`)
		o := s.script("password.sh", values{"PASSWORD": "Sesame"}, "")
		require.Equal(t, "reload", o.result)
		require.NotContains(t, o.detail+o.output, "Sesame")
	})
	t.Run("an image without chpasswd fails", func(t *testing.T) {
		require.Equal(t, "fail", newSandbox(t).script("password.sh", values{"PASSWORD": "Sesame"}, "").result)
	})
	t.Run("each is another", func(t *testing.T) {
		seen := map[string]bool{}
		for range 100 {
			password := climb.RandomPassword()
			require.Len(t, password, 24)
			require.False(t, seen[password])
			seen[password] = true
		}
	})
}

func TestLeftoverKeys(t *testing.T) {
	const ours, theirs = "AAAAC3NzaOURS", "AAAAC3NzaTHEIRS"
	private := "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----\n"
	image := func(s *sandbox, authorized string) {
		s.write("root/.ssh/id_ed25519", private)
		s.write("root/.ssh/id_ed25519.pub", "ssh-ed25519 "+theirs)
		s.write("root/.ssh/config", "Host *\n")
		s.write("root/.ssh/authorized_keys", authorized)
		s.write("home/ann/.ssh/deploy", strings.Replace(private, "OPENSSH", "RSA", 2))
		s.write("home/ann/.ssh/authorized_keys", "ssh-ed25519 "+theirs+" ann\n")
	}
	eachShell(t, func(t *testing.T, shell ...string) {
		t.Run("private keys and others' keys go, ours stays", func(t *testing.T) {
			s := newSandbox(t, shell...)
			image(s, "# from the image\nssh-ed25519 "+theirs+" maker@x\nno-pty,command=\"a b\" ssh-ed25519 "+ours+" berth\nssh-rsa "+ours+"X other\n")
			for _, want := range []string{"2 private keys and 2 of root's", "0 private keys and 0 of root's"} {
				o := s.script("keys.sh", values{"KEY": ours}, "")
				require.Equal(t, "done", o.result, "%+v", o)
				require.Contains(t, o.detail, want)
				require.Contains(t, o.detail, "1 of other accounts' authorized_keys left")
			}
			require.Equal(t, "no-pty,command=\"a b\" ssh-ed25519 "+ours+" berth\n", s.read("root/.ssh/authorized_keys"))
			require.False(t, s.has("root/.ssh/id_ed25519"))
			require.False(t, s.has("home/ann/.ssh/deploy"))
			require.True(t, s.has("root/.ssh/id_ed25519.pub"))
			require.True(t, s.has("root/.ssh/config"))
			require.Contains(t, s.read("home/ann/.ssh/authorized_keys"), theirs)
			info, err := os.Stat(filepath.Join(s.root, "root/.ssh/authorized_keys"))
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o600), info.Mode())
		})
		t.Run("nothing is taken out when ours is not there", func(t *testing.T) {
			s := newSandbox(t, shell...)
			image(s, "ssh-ed25519 "+theirs+"\n# ssh-ed25519 "+ours+"\nssh-rsa "+ours+"X other\n")
			o := s.script("keys.sh", values{"KEY": ours}, "")
			require.Equal(t, "warned", o.result, "%+v", o)
			require.Contains(t, s.read("root/.ssh/authorized_keys"), theirs)
			require.False(t, s.has("root/.ssh/id_ed25519"))
		})
		t.Run("all go when we log in by password", func(t *testing.T) {
			s := newSandbox(t, shell...)
			image(s, "ssh-ed25519 "+theirs)
			require.Equal(t, "done", s.script("keys.sh", values{"KEY": ""}, "").result)
			require.Empty(t, s.read("root/.ssh/authorized_keys"))
		})
		t.Run("an image without any is as good", func(t *testing.T) {
			require.Contains(t, newSandbox(t, shell...).script("keys.sh", nil, "").detail, "0 private keys and 0 of root's")
		})
	})
}

func TestHostname(t *testing.T) {
	eachShell(t, func(t *testing.T, shell ...string) {
		t.Run("with systemd and cloud-init", func(t *testing.T) {
			s := newSandbox(t, shell...)
			s.systemd()
			s.tool("hostnamectl", ":")
			s.write("etc/cloud/cloud.cfg.d/05.cfg", "")
			s.write("etc/hosts", "127.0.0.1 localhost\n127.0.1.1\ttemplate\n")
			for range 2 {
				o := s.script("hostname.sh", values{"NAME": "vm-01"}, "")
				require.Equal(t, "done", o.result, "%+v", o)
			}
			require.Contains(t, s.calls(), "hostnamectl set-hostname vm-01")
			require.Equal(t, "127.0.0.1 localhost\n127.0.1.1\tvm-01\n", s.read("etc/hosts"))
			require.Equal(t, "preserve_hostname: true\n", s.read("etc/cloud/cloud.cfg.d/99-berth.cfg"))
		})
		t.Run("without", func(t *testing.T) {
			s := newSandbox(t, shell...)
			s.tool("hostname", ":")
			require.Equal(t, "done", s.script("hostname.sh", values{"NAME": "vm-01"}, "").result)
			require.Equal(t, "vm-01\n", s.read("etc/hostname"))
			require.Contains(t, s.calls(), "hostname vm-01")
			require.False(t, s.has("etc/cloud"))
		})
		t.Run("that cannot be set", func(t *testing.T) {
			s := newSandbox(t, shell...)
			s.tool("hostname", "echo no >&2; exit 1")
			require.Equal(t, "reload", s.script("hostname.sh", values{"NAME": "vm-01"}, "").result)
		})
	})
}

func TestSiteScript(t *testing.T) {
	run := func(s *sandbox, text string) outcome {
		return s.script("site.sh", values{"SCRIPT": "all/10-x", "SIZE": strconv.Itoa(len(text)), "BERTH_COMPUTER": "vm-01", "BERTH_USER": "ann $(id)"}, text)
	}
	eachShell(t, func(t *testing.T, shell ...string) {
		t.Run("finds its values and leaves its output and exit code", func(t *testing.T) {
			s := newSandbox(t, shell...)
			o := run(s, "#!/bin/sh\necho one\necho \"$BERTH_COMPUTER for $BERTH_USER\"\nread -r line || echo no input\nexit 3\n")
			require.Equal(t, 3, o.exit)
			require.Equal(t, "one / vm-01 for ann $(id) / no input", o.output)
			require.False(t, s.has("var/lib/berth/site-script"))
		})
		t.Run("is not run in part", func(t *testing.T) {
			o := newSandbox(t, shell...).script("site.sh", values{"SIZE": "1000"}, "#!/bin/sh\necho ran\n")
			require.Equal(t, 125, o.exit)
			require.NotContains(t, o.output, "ran")
		})
	})
}

func TestTag(t *testing.T) {
	eachShell(t, func(t *testing.T, shell ...string) {
		s := newSandbox(t, shell...)
		text := "{\n  \"image\": \"debian12\"\n}\n"
		require.Equal(t, "done", s.script("tag.sh", values{"SIZE": strconv.Itoa(len(text))}, text).result)
		require.Equal(t, text, s.read("etc/berth/load.json"))
		require.Equal(t, "reload", s.script("tag.sh", values{"SIZE": "1000"}, "half").result)
		require.Equal(t, text, s.read("etc/berth/load.json"), "half a tag does not take the old one's place")
	})
}

func TestSetup(t *testing.T) {
	t.Parallel()
	const long = "status: error\\nextended_status: error - done\\nboot_status_code: enabled\\ndetail:\\n(\\\"users_groups\\\", Failure())\\nerrors:\\n\\t- one\\n"
	for name, c := range map[string]struct {
		guest func(*sandbox)
		want  setup
	}{
		"neither is there": {func(*sandbox) {}, setup{finished: true}},
		"both are done":    {func(s *sandbox) { s.systemd(); s.tool("cloud-init", "echo status: done") }, setup{finished: true}},
		"cloud-init runs": {func(s *sandbox) { s.systemd(); s.tool("cloud-init", "echo; echo status: running") },
			setup{detail: "cloud-init: running"}},
		"cloud-init has not begun": {func(s *sandbox) { s.tool("cloud-init", "echo status: not run") }, setup{detail: "cloud-init: not run"}},
		"cloud-init is disabled":   {func(s *sandbox) { s.tool("cloud-init", "echo status: disabled") }, setup{finished: true}},
		"cloud-init is done and degraded": {func(s *sandbox) {
			s.tool("cloud-init", "echo status: done; echo extended_status: degraded done; exit 2")
		}, setup{finished: true, detail: "cloud-init: degraded done"}},
		"cloud-init failed": {func(s *sandbox) { s.tool("cloud-init", "printf '"+strings.ReplaceAll(long, `\"`, "")+"'; exit 1") },
			setup{broken: "cloud-init: error: detail: (users_groups, Failure()) errors:  - one", detail: "cloud-init: error"}},
		"an old cloud-init runs": {func(s *sandbox) { s.tool("cloud-init", "echo usage; exit 2"); s.write("run/cloud-init/x", "") },
			setup{detail: "cloud-init: running"}},
		"an old cloud-init is done": {func(s *sandbox) { s.tool("cloud-init", "exit 2"); s.write("run/cloud-init/result.json", "") }, setup{finished: true}},
		"an old cloud-init is off":  {func(s *sandbox) { s.tool("cloud-init", "exit 2") }, setup{finished: true}},
		"systemd starts":            {func(s *sandbox) { s.tool("systemctl", "echo starting; exit 1") }, setup{detail: "systemd: starting"}},
		"systemd cannot answer yet": {func(s *sandbox) { s.tool("systemctl", "exit 1"); s.write("run/systemd/system/x", "") }, setup{detail: "systemd: starting"}},
		"systemd does not run":      {func(s *sandbox) { s.tool("systemctl", "echo offline; exit 1") }, setup{finished: true}},
		"systemd is degraded": {func(s *sandbox) {
			s.tool("systemctl", `case $1 in is-system-running) echo degraded; exit 1 ;; --failed) echo "a.service loaded failed failed A"; echo "b.mount x" ;; esac`)
		}, setup{finished: true, detail: "systemd: degraded a.service b.mount"}},
	} {
		t.Run(name, func(t *testing.T) {
			eachShell(t, func(t *testing.T, shell ...string) {
				s := newSandbox(t, shell...)
				c.guest(s)
				o := s.script("setup.sh", nil, "")
				require.Equal(t, c.want, setupState(o), "%+v", o)
				require.Equal(t, "b0000001-0000-4000-8000-000000000000", o.values["boot"])
			})
		})
	}
}

func TestAValueIsNeverMoreThanItsLine(t *testing.T) {
	_, err := values{"NAME": "a\nROOT=/"}.input("")
	require.ErrorContains(t, err, "NAME has control characters")
}

// A worker that is killed right after it has begun a command leaves a script whose input ends early.
func TestAScriptWhoseInputIsCutOffDoesNothing(t *testing.T) {
	const ours = "AAAAC3NzaOURS"
	eachShell(t, func(t *testing.T, shell ...string) {
		s := newSandbox(t, shell...)
		s.write("root/.ssh/authorized_keys", "ssh-ed25519 "+ours+"\n")
		s.write("root/.ssh/id_ed25519", "-----BEGIN OPENSSH PRIVATE KEY-----\n")
		whole, err := values{"ROOT": s.root, "KEY": ours}.input("")
		require.NoError(t, err)
		text, err := line("keys.sh")
		require.NoError(t, err)
		text = strings.ReplaceAll(strings.TrimSuffix(strings.TrimPrefix(text, "/bin/sh -c '"), "'"), `'\''`, "'")
		for _, n := range []int{0, 1, strings.Index(whole, "\n"), strings.Index(whole, "\n") + 1, strings.Index(whole, "END"), len(whole) - 1} {
			var stdout strings.Builder
			require.NotZero(t, s.run(t.Context(), text, strings.NewReader(whole[:n]), &stdout, io.Discard), "%q", whole[:n])
			require.Empty(t, stdout.String())
		}
		require.Equal(t, "ssh-ed25519 "+ours+"\n", s.read("root/.ssh/authorized_keys"))
		require.True(t, s.has("root/.ssh/id_ed25519"))
	})
}

func TestAScriptsLineBearsNoValue(t *testing.T) {
	entries, err := scripts.ReadDir("scripts")
	require.NoError(t, err)
	require.Len(t, entries, 12)
	for _, entry := range entries {
		first, err := line(entry.Name())
		require.NoError(t, err)
		second, err := line(entry.Name())
		require.NoError(t, err)
		require.Equal(t, first, second)
		require.Less(t, len(first), 32<<10, "one SSH packet")
		text, err := scripts.ReadFile("scripts/" + entry.Name())
		require.NoError(t, err)
		require.NotRegexp(t, `(^|[;&|\s])eval\s`, string(text))
	}
}
