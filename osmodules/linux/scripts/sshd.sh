# sshd.sh makes sure that the control channel is still there after a boot: sshd starts, and listens on the control
# address. What runs now is left alone: it answers us.

address=
if test -n "${SSH_CONNECTION:-}"; then
	address=${SSH_CONNECTION% *}
	address=${address##* }
	address=${address%%%*}
	case $address in
	::ffff:*.*) address=${address#::ffff:} ;;
	esac
fi

# listening: does sshd's configuration name the control address, or all addresses?
listening() {
	case $address in
	*:*) here="[$address]:$PORT" any="[::]:$PORT" ;;
	*) here="$address:$PORT" any="0.0.0.0:$PORT" ;;
	esac
	# In parentheses: a shell may run a pipe's last part in its own process, and exit would end the whole script.
	printf '%s\n' "$1" | sed -n 's/^listenaddress //p' | (
		found=1
		while IFS= read -r listens; do
			case $listens in
			"$here" | "$any" | "[::]:$PORT") found=0 ;;
			esac
		done
		exit $found
	)
}

note=
sockets=no
if systemd; then
	unit=
	for candidate in ssh.socket sshd.socket; do
		# Ubuntu from 22.10 on starts sshd by its socket, which then says where it listens.
		case $(systemctl is-enabled "$candidate" 2>/dev/null </dev/null) in
		enabled) unit=$candidate sockets=yes ;;
		esac
	done
	if test -z "$unit"; then
		for candidate in ssh.service sshd.service; do
			case $(systemctl is-enabled "$candidate" 2>/dev/null </dev/null) in
			enabled | enabled-runtime | alias | static | indirect | generated)
				unit=$candidate
				break
				;;
			disabled | masked | masked-runtime)
				try systemctl unmask "$candidate"
				try systemctl enable "$candidate" || finish reload "$candidate cannot be enabled: $said"
				unit=$candidate note="; it was not enabled"
				break
				;;
			esac
		done
	fi
	test -n "$unit" || finish warned "no unit of sshd's: it is not known whether it starts at boot"
else
	unit=sshd
	note="; without systemd it is not known whether it starts at boot"
fi

if test $sockets = no && test -n "$address" && have sshd; then
	configured=$(sshd -T 2>/dev/null </dev/null)
	if test -n "$configured" && ! listening "$configured"; then
		main=$ROOT/etc/ssh/sshd_config
		case $address in
		*:*) line="ListenAddress [$address]:$PORT" ;;
		*) line="ListenAddress $address:$PORT" ;;
		esac
		# At the top, because a Match block goes on to the end of the file. ListenAddress adds to those that are there.
		cp -p "$main" "$main.before-berth" || finish reload "$main cannot be copied"
		{
			echo '# Berth: the control channel comes in here.'
			echo "$line"
			cat "$main.before-berth"
		} | put "$main" 600
		if ! try sshd -t; then
			refused=$said
			mv -f "$main.before-berth" "$main"
			finish warned "sshd's configuration leaves out $address and refused a line for it: $refused"
		fi
		note="$note; its configuration left out $address, which was added"
	fi
fi

case $note in
*'without systemd'*) finish warned "sshd answers$note" ;;
esac
finish done "$unit is enabled$note"
