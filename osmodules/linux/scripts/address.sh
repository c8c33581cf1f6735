# address.sh reads the guest's public address.
#
# INTERFACE	the public one; empty: the one with the default route
# WAIT		seconds to wait for an address, such as DHCP's (VCL OS.pm: 60 s, polled each 2 s)

have ip || finish warned "no ip command: the public address cannot be read"

# find FAMILY WORD: set interface and address.
find_address() {
	interface=$INTERFACE
	test -n "$interface" ||
		interface=$(ip "$1" route show default 2>/dev/null </dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p' | head -n 1)
	test -n "$interface" || return 1
	address=$(ip "$1" -o addr show dev "$interface" scope global 2>/dev/null </dev/null |
		sed -n "s/.* $2 \([0-9a-f.:]*\).*/\1/p" | head -n 1)
	test -n "$address"
}

waited=0
until find_address -4 inet || find_address -6 inet6; do
	if test "$waited" -ge "$WAIT"; then
		test -z "$INTERFACE" || finish reload "interface $INTERFACE has no public address after $WAIT s"
		if test -z "${SSH_CONNECTION:-}"; then
			finish reload "no default route after $WAIT s, and image.post_load.public_interface names no interface"
		fi
		address=${SSH_CONNECTION% *}
		value public-address "${address##* }"
		finish warned "no default route after $WAIT s: the control address is taken for the public one"
	fi
	sleep 2
	waited=$((waited + 2))
done
value public-address "$address"
finish done "$address on $interface"
