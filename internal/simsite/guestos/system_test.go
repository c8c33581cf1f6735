package guestos

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
)

func TestNftKeepsARulesetAsATransaction(t *testing.T) {
	m := guest(t, Debian12)
	rules := `add table inet berth
delete table inet berth
table inet berth {
	set managers {
		type ipv4_addr
		flags interval
		elements = { 10.0.0.0/8, 192.0.2.7 }
	}
	chain input {
		type filter hook input priority -5; policy accept;
		tcp dport 22001 ct state established,related accept
		tcp dport { 22, 22001 } ip saddr @managers accept # a comment
		tcp dport 22001 drop
	}
}
`
	want := `table inet berth {
	set managers {
		type ipv4_addr
		flags interval
		elements = { 10.0.0.0/8, 192.0.2.7 }
	}

	chain input {
		type filter hook input priority -5; policy accept;
		tcp dport 22001 ct state established,related accept
		tcp dport { 22, 22001 } ip saddr @managers accept
		tcp dport 22001 drop
	}
}
`
	for range 2 { // the same text again gives the same rules
		status, _, errs := sh(t, m, `nft -f -`, rules)
		require.Zero(t, status, errs)
		require.Equal(t, want, m.Ruleset())
	}
	status, _, errs := sh(t, m, `nft -f -`, "flush ruleset\nadd rule inet nowhere input accept\n")
	require.Equal(t, 1, status)
	require.Contains(t, errs, "No such file or directory")
	require.Equal(t, want, m.Ruleset(), "a transaction that fails changes nothing")
	for _, bad := range []string{"table inet x {", "tabel inet x { }", "table inet x { chain y { bogus 3 } }", "table inet x { chain y { type filter hook } }", "}"} {
		status, _, _ := sh(t, m, `nft -f -`, bad)
		require.Equal(t, 1, status, bad)
	}
	status, out, errs := sh(t, m, `nft list tables; nft add rule inet berth input tcp dport 80 accept && nft -a list chain inet berth input | grep 80 | sed 's/.*# //'
		nft delete rule inet berth input handle 4; nft list ruleset | grep -c 80; nft flush ruleset; nft list ruleset; nft list table inet berth`, "")
	require.Equal(t, 1, status)
	require.Equal(t, "table inet berth\nhandle 4\n0\n", out, errs)

	_, _, _ = sh(t, m, `nft -f -`, rules)
	m.Boot()
	require.Empty(t, m.Ruleset(), "rules are lost at a reboot unless a service loads them")
	status, _, errs = sh(t, m, `cat >/etc/nftables.conf && systemctl enable nftables`, rules)
	require.Zero(t, status, errs)
	m.Boot()
	require.Equal(t, want, m.Ruleset())
}

func TestAUnitThatAScriptInstallsRunsAtBoot(t *testing.T) {
	m := guest(t, Debian12)
	status, _, errs := sh(t, m, `mkdir -p /etc/berth
printf 'table inet kept {\n}\n' >/etc/berth/rules
cat >/etc/systemd/system/kept.service <<END
[Service]
Type=oneshot
ExecStart=/usr/sbin/nft -f /etc/berth/rules
[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload && systemctl enable kept.service && systemctl is-enabled kept.service`, "")
	require.Zero(t, status, errs)
	m.Boot()
	m.StartUnits(t.Context())
	require.Equal(t, "table inet kept {\n}\n", m.Ruleset())
}

func TestIptablesKeepsChains(t *testing.T) {
	m := guest(t, Debian12)
	status, out, errs := sh(t, m, `iptables -N berth; iptables -A berth -s 10.0.0.1 -j ACCEPT; iptables -A berth -j DROP
iptables -w -I INPUT 1 -p tcp --dport 22 -j berth; iptables -w -C INPUT -p tcp --dport 22 -j berth && echo there
iptables -C INPUT -p tcp --dport 23 -j berth 2>/dev/null || echo not there; iptables -A INPUT -j nowhere 2>/dev/null || echo no chain; iptables -S`, "")
	require.Zero(t, status, errs)
	require.Equal(t, "there\nnot there\nno chain\n-P INPUT ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -j berth\n-P FORWARD ACCEPT\n-P OUTPUT ACCEPT\n-N berth\n-A berth -s 10.0.0.1/32 -j ACCEPT\n-A berth -j DROP\n", out)
	status, _, errs = sh(t, m, `iptables-restore --noflush && iptables-save | iptables-restore`, "*filter\n:berth - [0:0]\n-A berth -i lo -j ACCEPT\n-A berth -j DROP\nCOMMIT\n")
	require.Zero(t, status, errs)
	require.Contains(t, m.IPTables("iptables"), "-A INPUT -p tcp -m tcp --dport 22 -j berth\n-A berth -i lo -j ACCEPT\n-A berth -j DROP\nCOMMIT\n")
	status, _, _ = sh(t, m, `ip6tables-restore`, "*filter\n-A nowhere -j DROP\nCOMMIT\n")
	require.NotZero(t, status)
}

func TestOtherFirewallsKeepTheirRules(t *testing.T) {
	rocky := guest(t, Rocky9)
	status, out, errs := sh(t, rocky, `firewall-cmd --state; firewall-cmd --get-default-zone; firewall-cmd --permanent --zone=public --add-rich-rule='rule family="ipv4" source address="10.0.0.0/8" port port="22" protocol="tcp" accept'
firewall-cmd --permanent --zone=public --remove-service=ssh; firewall-cmd --list-services; firewall-cmd --reload; firewall-cmd --list-services; firewall-cmd --query-service=ssh; command -v iptables ufw || echo neither`, "")
	require.Zero(t, status, errs)
	require.Equal(t, "running\npublic\nsuccess\nsuccess\nssh dhcpv6-client cockpit\nsuccess\ndhcpv6-client cockpit\nno\nneither\n", out)
	require.Contains(t, rocky.FirewalldItems("public"), `rich-rule:rule family="ipv4" source address="10.0.0.0/8" port port="22" protocol="tcp" accept`)

	ubuntu := guest(t, Ubuntu2404)
	status, _, errs = sh(t, ubuntu, `ufw status | grep -q inactive && ufw --force enable && ufw deny proto tcp from any to any port 22 && ufw prepend allow proto tcp from 10.0.0.0/8 to any port 22 && ufw --force delete allow ssh`, "")
	require.Zero(t, status, errs)
	active, rules := ubuntu.UFW()
	require.True(t, active)
	require.Equal(t, []string{"allow proto tcp from 10.0.0.0/8 to any port 22", "deny proto tcp from any to any port 22"}, rules)
}

func TestServicesHaveAState(t *testing.T) {
	m := guest(t, Debian12)
	status, out, errs := sh(t, m, `systemctl is-system-running; systemctl is-enabled ssh.service sshd; systemctl is-active ssh; systemctl is-active nftables
systemctl enable --now nftables; systemctl is-active nftables; systemctl stop ssh; systemctl is-active ssh; systemctl is-enabled nowhere 2>/dev/null || echo unknown
systemctl mask cron; systemctl start cron 2>/dev/null || echo masked; systemctl show -p ActiveState --value ssh`, "")
	require.Zero(t, status, errs)
	require.Equal(t, "running\nenabled\nalias\nactive\ninactive\nactive\ninactive\nunknown\nmasked\ninactive\n", out)
	m.Boot()
	_, out, _ = sh(t, m, `systemctl is-active ssh; systemctl is-active cron`, "")
	require.Equal(t, "active\ninactive\n", out, "a boot starts what is enabled")
}

func TestCloudInitSaysWhatTheBootSays(t *testing.T) {
	state := CloudInit{Running: true}
	image, err := NewImage(ImageOptions{Distribution: Debian12})
	require.NoError(t, err)
	m := New(Options{Image: image, Hooks: Hooks{CloudInit: func() CloudInit { return state }}})
	m.Boot()
	_, out, _ := sh(t, m, `cloud-init status; systemctl is-system-running || echo $?`, "")
	require.Equal(t, "status: running\nstarting\n1\n", out)
	state = CloudInit{Error: "no network"}
	status, out, _ := sh(t, m, `cloud-init status --long; echo $?; systemctl is-system-running; systemctl --failed --no-legend --plain | cut -d ' ' -f 1`, "")
	require.Zero(t, status)
	require.Contains(t, out, "status: error\n")
	require.Contains(t, out, "detail:\nno network\n1\ndegraded\ncloud-final.service\n")
	state = CloudInit{}
	_, out, _ = sh(t, m, `cloud-init status --wait; cloud-init status --format json`, "")
	require.Contains(t, out, "status: done\n{")
	_, out, _ = sh(t, guest(t, Debian12, "cloud-init"), `command -v cloud-init || echo absent`, "")
	require.Equal(t, "absent\n", out)
}

func TestTheClockCanBeWrongAndSet(t *testing.T) {
	image, err := NewImage(ImageOptions{Distribution: Rocky9})
	require.NoError(t, err)
	m := New(Options{Image: image, Offset: -time.Hour})
	m.Boot()
	require.InDelta(t, 3600, time.Until(m.Now().Add(0)).Abs().Seconds(), 5)
	_, out, errs := sh(t, m, `timedatectl show -p NTPSynchronized --value; chronyc makestep; timedatectl show -p NTPSynchronized --value`, "")
	require.Equal(t, "no\n200 OK\nyes\n", out, errs)
	require.InDelta(t, 0, time.Until(m.Now()).Seconds(), 5)
	_, out, _ = sh(t, m, `date -u -s @1000000 +%s; date +%F`, "")
	require.Equal(t, "1000000\n1970-01-12\n", out)
}

func TestTheNetworkIsWhatTheVMHas(t *testing.T) {
	image, err := NewImage(ImageOptions{Distribution: Debian12})
	require.NoError(t, err)
	m := New(Options{Image: image, Interfaces: []Interface{
		{Name: "lo", MAC: "00:00:00:00:00:00", Address: netip.MustParsePrefix("127.0.0.1/8")},
		{Name: "ens192", MAC: "00:50:56:00:00:01", Address: netip.MustParsePrefix("10.0.0.5/24")},
		{Name: "ens224", MAC: "00:50:56:00:00:02", Address: netip.MustParsePrefix("198.18.0.9/15"), Default: netip.MustParseAddr("198.18.0.1")},
	}})
	m.Boot()
	_, out, errs := sh(t, m, `i=$(ip -4 route show default | sed -n 's/.* dev \([^ ]*\).*/\1/p'); echo $i; ip -4 -o addr show dev "$i" scope global | sed -n 's/.* inet \([0-9.]*\).*/\1/p'
ip -j addr show dev ens192 | grep -o '"local":"[^"]*"'; ip -6 route show default; ip addr show dev eth9 2>/dev/null || echo none; ip -o link | wc -l; hostname -I`, "")
	require.Equal(t, "ens224\n198.18.0.9\n\"local\":\"10.0.0.5\"\nnone\n3\n10.0.0.5 198.18.0.9\n", out, errs)
}

func TestPasswordsAndAccounts(t *testing.T) {
	m := guest(t, Debian12)
	status, _, errs := sh(t, m, `cat | chpasswd`, "root:new secret:with colon\n")
	require.Zero(t, status, errs)
	require.True(t, m.CheckPassword("root", "new secret:with colon"))
	shadow, err := m.ReadFile("/etc/shadow")
	require.NoError(t, err)
	require.NotContains(t, string(shadow), "new secret")
	status, _, errs = sh(t, m, `chpasswd`, "nobody-here:x\n")
	require.Equal(t, 1, status)
	require.Contains(t, errs, "does not exist")
	_, out, _ := sh(t, m, `passwd -S root | cut -d' ' -f2; passwd -l root; passwd -S root | cut -d' ' -f2; useradd -m joe && id -u joe && ls -d /home/joe; userdel -r joe; id joe 2>/dev/null || echo gone`, "")
	require.Equal(t, "P\nL\n1001\n/home/joe\ngone\n", out)
}

func TestHostKeysLiveOnTheDisk(t *testing.T) {
	m := guest(t, Debian12)
	first, err := m.HostKey()
	require.NoError(t, err)
	m.Boot()
	second, err := m.HostKey()
	require.NoError(t, err)
	require.Equal(t, ssh.FingerprintSHA256(first.PublicKey()), ssh.FingerprintSHA256(second.PublicKey()))
	_, out, errs := sh(t, m, `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub; stat -c %a /etc/ssh/ssh_host_ed25519_key`, "")
	require.Equal(t, fmt.Sprintf("256 %s no comment (ED25519)\n600\n", ssh.FingerprintSHA256(first.PublicKey())), out, errs)
	require.Error(t, m.SetHostKey([]byte("no key")))
}

func TestSshdReadsItsConfiguration(t *testing.T) {
	m := guest(t, Debian12)
	require.True(t, m.PasswordLogin("root"))
	_, out, errs := sh(t, m, `sshd -t && sshd -T | sed -n 's/^listenaddress //p'; printf 'ListenAddress 10.0.0.1:2222\nPasswordAuthentication no\n' >>/etc/ssh/sshd_config; sshd -T | sed -n 's/^listenaddress //p'
echo Bogus x >>/etc/ssh/sshd_config; sshd -t 2>&1 || echo refused`, "")
	require.Equal(t, "[::]:22001\n0.0.0.0:22001\n10.0.0.1:2222\n/etc/ssh/sshd_config: line 8: Bad configuration option: Bogus\nrefused\n", out, errs)
}

func TestAnImageRefusesWhatItCannotBe(t *testing.T) {
	_, err := NewImage(ImageOptions{Distribution: "plan9"})
	require.ErrorContains(t, err, "use one of")
	_, err = NewImage(ImageOptions{Distribution: Debian12, Without: []string{"nothing"}})
	require.ErrorContains(t, err, `command "nothing" is not known`)
}
