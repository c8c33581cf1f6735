# time.sh holds the guest's clock against the worker's.
#
# NOW		the worker's time, in seconds since 1970, when this was sent
# TOLERANCE	seconds that the two may differ (VCL Linux.pm: rdate -t 3)

# service: which time service runs here?
service() {
	systemd || return 1
	for name in chronyd chrony systemd-timesyncd ntpsec ntp ntpd; do
		if try systemctl is-active "$name"; then
			printf '%s' "$name"
			return 0
		fi
	done
	return 1
}

# apart: how many seconds are the clocks apart?
apart() {
	difference=$(($(date -u +%s) - NOW))
	difference=${difference#-}
}

keeper=$(service) || keeper=
apart
if test "$difference" -le "$TOLERANCE"; then
	finish done "the clock is right${keeper:+, kept by $keeper}"
fi
was=$difference

try date -u -s "@$NOW"
case $keeper in
chronyd | chrony)
	try chronyc makestep
	;;
?*)
	try systemctl restart "$keeper"
	;;
*)
	# No service runs; where timedatectl knows one, it is switched on.
	if have timedatectl && try timedatectl set-ntp true; then
		keeper=timedatectl
	fi
	;;
esac

apart
# The commands above took some seconds of their own.
if test "$difference" -gt $((TOLERANCE + 10)); then
	finish warned "the clock was $was s off and is still $difference s off${keeper:+, with $keeper}"
fi
test -n "$keeper" || finish warned "the clock was $was s off and was set; no time service runs here to keep it"
finish done "the clock was $was s off and was set, kept by $keeper"
