# password.sh gives root a password that nobody knows.
#
# PASSWORD	the new one. It is a shell variable and a line on a standard input, never an argument.

have chpasswd || finish fail "no chpasswd command: root's password from the image would stay"
test -n "$PASSWORD" || finish fail "no password came"
if said=$(printf 'root:%s\n' "$PASSWORD" | chpasswd 2>&1); then
	finish done "root has a random password"
else
	finish reload "chpasswd ended with $?"
fi
