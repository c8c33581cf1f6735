# firewall.sh lets only management addresses reach the control port.
#
# SOURCES	networks, separated by blanks; empty: only the address that we come from
# PORT, FROM	the control port and our address, where sshd has not set SSH_CONNECTION
#
# What is there and active decides, in this order: firewalld, ufw (both own the rules of their machine), nftables,
# iptables. Our own address is always let in, and connections that stand are never cut: rules that let in come before
# rules that keep out.

case $PORT in
'' | *[!0-9]*) finish fail "the control port is not known: sshd set no SSH_CONNECTION" ;;
esac
case $FROM in
'') test -n "$SOURCES" || finish fail "our own address is not known, and image.post_load.management_sources is empty" ;;
*:*) SOURCES="$SOURCES $FROM/128" ;;
*) SOURCES="$SOURCES $FROM/32" ;;
esac

v4= v6=
for source in $SOURCES; do
	case $source in
	*:*) v6="$v6 $source" ;;
	*) v4="$v4 $source" ;;
	esac
done
named="port $PORT from$v4$v6"

# at_boot COMMAND...: have the rules set again at each boot, after the image's own.
at_boot() {
	if ! systemd; then
		finish warned "$named; without systemd the rules end with this boot"
	fi
	{
		echo '[Unit]'
		echo 'Description=Berth: the control port is for management addresses only'
		echo 'DefaultDependencies=no'
		echo 'After=local-fs.target nftables.service iptables.service ip6tables.service netfilter-persistent.service'
		echo 'Before=network-pre.target shutdown.target'
		echo 'Wants=network-pre.target'
		echo 'Conflicts=shutdown.target'
		echo '[Service]'
		echo 'Type=oneshot'
		echo 'RemainAfterExit=yes'
		for command in "$@"; do
			echo "ExecStart=$command"
		done
		echo '[Install]'
		echo 'WantedBy=multi-user.target'
	} | put "$ROOT/etc/systemd/system/berth-firewall.service" 644 || finish reload "the firewall's unit cannot be written"
	try systemctl daemon-reload
	try systemctl enable berth-firewall.service || finish warned "$named; not kept over a boot: $said"
}

with_firewalld() {
	open=
	for zone in $(
		firewall-cmd --get-default-zone </dev/null
		firewall-cmd --get-active-zones </dev/null | sed -n 's/^\([^[:space:]]\{1,\}\).*/\1/p'
	); do
		case " $open " in
		*" $zone "*) continue ;;
		esac
		open="$open $zone"
		for source in $v4 $v6; do
			family=ipv4
			case $source in
			*:*) family=ipv6 ;;
			esac
			try firewall-cmd --permanent --zone="$zone" --add-rich-rule="rule family=\"$family\" source address=\"$source\" port port=\"$PORT\" protocol=\"tcp\" accept" ||
				finish reload "firewalld refused $source in zone $zone: $said"
		done
		test "$PORT" != 22 || try firewall-cmd --permanent --zone="$zone" --remove-service=ssh
		try firewall-cmd --permanent --zone="$zone" --remove-port="$PORT/tcp"
	done
	try firewall-cmd --reload || finish reload "firewalld did not load its rules: $said"
	accepting=
	for zone in $open; do
		case $(firewall-cmd --permanent --zone="$zone" --get-target 2>/dev/null </dev/null) in
		ACCEPT) accepting="$accepting $zone" ;;
		esac
	done
	test -z "$accepting" || finish warned "firewalld: zone$accepting lets in everything, so port $PORT stays open there"
	finish done "firewalld: $named in zone$open"
}

with_ufw() {
	for source in $v4 $v6; do
		# "prepend" came with ufw 0.36; before that a rule can only be put last.
		try ufw prepend allow proto tcp from "$source" to any port "$PORT" ||
			try ufw allow proto tcp from "$source" to any port "$PORT" ||
			finish reload "ufw refused $source: $said"
	done
	for rule in "$PORT/tcp" "$PORT"; do
		try ufw --force delete allow "$rule"
		try ufw --force delete limit "$rule"
	done
	if test "$PORT" = 22; then
		for rule in ssh OpenSSH; do
			try ufw --force delete allow "$rule"
			try ufw --force delete limit "$rule"
		done
	fi
	try ufw deny proto tcp from any to any port "$PORT" || finish reload "ufw did not close port $PORT: $said"
	finish done "ufw: $named"
}

# nft_rules prints a table of our own. A packet must pass every table, so this one adds to the image's rules and never
# opens what they close. The first two lines empty the table in the same transaction that fills it.
nft_rules() {
	echo 'add table inet berth'
	echo 'delete table inet berth'
	echo 'table inet berth {'
	echo '	chain input {'
	echo '		type filter hook input priority -5; policy accept;'
	echo "		tcp dport $PORT ct state established,related accept"
	echo "		tcp dport $PORT iifname \"lo\" accept"
	for source in $v4; do
		echo "		tcp dport $PORT ip saddr $source accept"
	done
	for source in $v6; do
		echo "		tcp dport $PORT ip6 saddr $source accept"
	done
	echo "		tcp dport $PORT drop"
	echo '	}'
	echo '}'
}

with_nft() {
	nft_rules | put "$ROOT/etc/berth/firewall.nft" 600 || finish reload "the firewall's rules cannot be written"
	try nft -f "$ROOT/etc/berth/firewall.nft" || finish reload "nft refused the rules: $said"
	at_boot "$(command -v nft) -f /etc/berth/firewall.nft"
	finish done "nftables: $named"
}

# tables_rules SOURCE...: what iptables-restore reads. The chain is emptied and filled in one go.
tables_rules() {
	echo '*filter'
	echo ':berth - [0:0]'
	echo '-A berth -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT'
	echo '-A berth -i lo -j ACCEPT'
	for source in "$@"; do
		echo "-A berth -s $source -j ACCEPT"
	done
	echo '-A berth -j DROP'
	if test "$jump" = with-jump; then
		echo "-I INPUT 1 -p tcp --dport $PORT -j berth"
	fi
	echo COMMIT
}

# with_tables COMMAND SOURCE...: the chain first, and the jump to it only when the chain stands.
with_tables() {
	tables=$1
	shift
	jump=with-jump
	tables_rules "$@" | put "$ROOT/etc/berth/firewall.$tables" 600 || return 1
	jump=without
	said=$(tables_rules "$@" | "$tables-restore" --noflush 2>&1) || return 1
	try "$tables" -w -C INPUT -p tcp --dport "$PORT" -j berth ||
		try "$tables" -w -I INPUT 1 -p tcp --dport "$PORT" -j berth
}

with_iptables() {
	# shellcheck disable=SC2086 # the networks are words
	with_tables iptables $v4 || finish reload "iptables refused the rules: $said"
	if have ip6tables && try ip6tables -w -L INPUT -n; then
		# shellcheck disable=SC2086
		with_tables ip6tables $v6 || finish reload "ip6tables refused the rules: $said"
		at_boot "$(command -v iptables-restore) --noflush /etc/berth/firewall.iptables" \
			"$(command -v ip6tables-restore) --noflush /etc/berth/firewall.ip6tables"
		finish done "iptables and ip6tables: $named"
	fi
	at_boot "$(command -v iptables-restore) --noflush /etc/berth/firewall.iptables"
	finish done "iptables: $named"
}

if have firewall-cmd && try firewall-cmd --state; then
	with_firewalld
fi
if have ufw && try ufw status; then
	case $said in
	*'Status: active'*) with_ufw ;;
	esac
fi
if have nft && try nft list tables; then
	with_nft
fi
if have iptables && try iptables -w -L INPUT -n; then
	with_iptables
fi
finish warned "no firewall tool that works: port $PORT is open to whoever reaches it"
