# prelude.sh stands before each of the other scripts; the two are run as one text by /bin/sh on the guest.
#
# Values arrive on standard input as KEY=value lines, up to a line END; what follows END is a step's own data. Nothing
# of a reservation is ever part of a script's text, and no value is ever evaluated.
#
# Answers go to standard output:
#	berth: value KEY=...		something to report
#	berth: done TEXT		and so on: how the step went (done, skipped, warned, reload, fail); the last line
#
# ROOT is empty on a guest. It stands before every path, so that a test can run a script over a folder.

set -u
LC_ALL=C
export LC_ALL
umask 022

ROOT= PORT=22 FROM= SOURCES= INTERFACE= WAIT=0 NOW= TOLERANCE= PASSWORD= KEY= NAME= SIZE= SCRIPT=
BERTH_STAGE= BERTH_RESERVATION= BERTH_USER= BERTH_COMPUTER= BERTH_IMAGE= BERTH_REVISION= BERTH_ATTEMPT=
BERTH_ADDRESS= BERTH_PUBLIC_ADDRESS=

whole=no
while IFS= read -r line; do
	case $line in
	END)
		whole=yes
		break
		;;
	ROOT=*) ROOT=${line#*=} ;;
	PORT=*) PORT=${line#*=} ;;
	FROM=*) FROM=${line#*=} ;;
	SOURCES=*) SOURCES=${line#*=} ;;
	INTERFACE=*) INTERFACE=${line#*=} ;;
	WAIT=*) WAIT=${line#*=} ;;
	NOW=*) NOW=${line#*=} ;;
	TOLERANCE=*) TOLERANCE=${line#*=} ;;
	PASSWORD=*) PASSWORD=${line#*=} ;;
	KEY=*) KEY=${line#*=} ;;
	NAME=*) NAME=${line#*=} ;;
	SIZE=*) SIZE=${line#*=} ;;
	SCRIPT=*) SCRIPT=${line#*=} ;;
	BERTH_STAGE=*) BERTH_STAGE=${line#*=} ;;
	BERTH_RESERVATION=*) BERTH_RESERVATION=${line#*=} ;;
	BERTH_USER=*) BERTH_USER=${line#*=} ;;
	BERTH_COMPUTER=*) BERTH_COMPUTER=${line#*=} ;;
	BERTH_IMAGE=*) BERTH_IMAGE=${line#*=} ;;
	BERTH_REVISION=*) BERTH_REVISION=${line#*=} ;;
	BERTH_ATTEMPT=*) BERTH_ATTEMPT=${line#*=} ;;
	BERTH_ADDRESS=*) BERTH_ADDRESS=${line#*=} ;;
	BERTH_PUBLIC_ADDRESS=*) BERTH_PUBLIC_ADDRESS=${line#*=} ;;
	esac
done
# A worker that is lost before it has sent all values leaves a script that goes on: sshd ends its input, not the script.
# What has not come must not be taken for empty; an empty KEY, for one, would lock the next worker out.
test $whole = yes || exit 125

# have COMMAND: is it there?
have() {
	command -v "$1" >/dev/null 2>&1
}

# value KEY TEXT: report something.
value() {
	printf 'berth: value %s=%s\n' "$1" "$(printf '%s' "$2" | tr '\n\t' '  ')"
}

# finish RESULT TEXT: say how the step went, and end.
finish() {
	printf 'berth: %s %s\n' "$1" "$(printf '%s' "$2" | tr '\n\t' '  ')"
	exit 0
}

# try COMMAND...: run it and keep what it said in $said.
said=
try() {
	said=$("$@" 2>&1 </dev/null)
}

# put PATH MODE: write standard input to PATH in one piece.
put() {
	mkdir -p "$(dirname "$1")" && cat >"$1.berth-new" && chmod "$2" "$1.berth-new" && mv -f "$1.berth-new" "$1"
}

# systemd: does it run here?
systemd() {
	have systemctl || return 1
	case $(systemctl is-system-running 2>/dev/null </dev/null) in
	'' | offline | unknown) return 1 ;;
	esac
}

# SSH_CONNECTION is set by sshd: our address and port, and the guest's own, both as the guest sees them.
if test -n "${SSH_CONNECTION:-}"; then
	FROM=${SSH_CONNECTION%% *}
	PORT=${SSH_CONNECTION##* }
fi
FROM=${FROM%%%*}
case $FROM in
::ffff:*.*) FROM=${FROM#::ffff:} ;;
esac
