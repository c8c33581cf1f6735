# site.sh runs one of the site's own scripts. Its exit code is the script's.
#
# SCRIPT	its name, for messages
# SIZE		its size in bytes; its text follows END
# BERTH_...	what it finds in its environment

export BERTH_STAGE BERTH_RESERVATION BERTH_USER BERTH_COMPUTER BERTH_IMAGE BERTH_REVISION BERTH_ATTEMPT
export BERTH_ADDRESS BERTH_PUBLIC_ADDRESS

# 125: not the script's own fault, but ours.
folder=$ROOT/var/lib/berth
mkdir -p "$folder" && chmod 700 "$folder" || exit 125
file=$folder/site-script
rm -f "$file"
cat >"$file" && chmod 700 "$file" || exit 125
got=$(wc -c <"$file")
if test "$((got))" -ne "$SIZE"; then
	echo "$SCRIPT: got $((got)) bytes of $SIZE" >&2
	exit 125
fi
cd "$ROOT/" || exit 125
"$file" </dev/null
code=$?
rm -f "$file"
exit $code
