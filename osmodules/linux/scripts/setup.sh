# setup.sh asks the guest whether its own set-up is finished: cloud-init and systemd, where they are there.
#
# cloud-init	absent, or the word of "cloud-init status": done, disabled, running, not run, error
# system	absent, or the word of "systemctl is-system-running": running, degraded, starting, ...

value boot "$(cat "$ROOT/proc/sys/kernel/random/boot_id" 2>/dev/null)"

if have cloud-init; then
	said=$(cloud-init status --long 2>&1 </dev/null)
	status=$(printf '%s\n' "$said" | sed -n 's/^status: *//p' | head -n 1)
	if test -z "$status"; then
		# Before 17.2 cloud-init has no "status": it writes result.json at its end.
		if test -e "$ROOT/run/cloud-init/result.json"; then
			status=done
		elif test -d "$ROOT/run/cloud-init"; then
			status=running
		else
			status=absent
		fi
	fi
	value cloud-init "$status"
	value cloud-init-extended "$(printf '%s\n' "$said" | sed -n 's/^extended_status: *//p' | head -n 1)"
	value cloud-init-text "$(printf '%s\n' "$said" | sed -n '/^detail:/,$p' | cut -c 1-300 | head -n 10)"
else
	value cloud-init absent
fi

if have systemctl; then
	state=$(systemctl is-system-running 2>/dev/null </dev/null)
	case $state in
	offline) state=absent ;;
	'' | unknown)
		# systemd makes this folder first of all: if it is there, systemd runs and is not yet able to answer.
		if test -d "$ROOT/run/systemd/system"; then
			state=starting
		else
			state=absent
		fi
		;;
	degraded)
		value failed-units "$(systemctl --failed --no-legend --plain 2>/dev/null </dev/null | cut -d ' ' -f 1 | head -n 5)"
		;;
	esac
	value system "$state"
else
	value system absent
fi
finish done ''
