# hostname.sh names the guest.
#
# NAME	the computer's name

test -n "$NAME" || finish fail "no name came"

if systemd && have hostnamectl && try hostnamectl set-hostname "$NAME"; then
	:
else
	printf '%s\n' "$NAME" | put "$ROOT/etc/hostname" 644 || finish reload "/etc/hostname cannot be written"
	try hostname "$NAME" || finish reload "the name cannot be set: $said"
fi

# The name must resolve, or sudo and others wait for a name service. 127.0.1.1 is Debian's address for it.
hosts=$ROOT/etc/hosts
test -f "$hosts" || : >"$hosts"
if ! grep -q -e "^127\.0\.1\.1[[:space:]]\{1,\}$NAME\$" "$hosts"; then
	{
		sed '/^127\.0\.1\.1[[:space:]]/d' "$hosts"
		printf '127.0.1.1\t%s\n' "$NAME"
	} | put "$hosts" 644 || finish reload "/etc/hosts cannot be written"
fi

# cloud-init would put its own name back at the next boot.
if test -d "$ROOT/etc/cloud/cloud.cfg.d"; then
	echo 'preserve_hostname: true' | put "$ROOT/etc/cloud/cloud.cfg.d/99-berth.cfg" 644
fi
finish done "$NAME"
