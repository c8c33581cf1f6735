# tag.sh writes /etc/berth/load.json: which image, for which reservation, and that it is configured. It is the last step,
# so the file is there if and only if all others went well.
#
# SIZE	the file's size in bytes; its text follows END

file=$ROOT/etc/berth/load.json
mkdir -p "$ROOT/etc/berth" && cat >"$file.berth-new" || finish reload "$file cannot be written"
got=$(wc -c <"$file.berth-new")
test "$((got))" -eq "$SIZE" || finish reload "$file: got $((got)) bytes of $SIZE"
chmod 644 "$file.berth-new" && mv -f "$file.berth-new" "$file" || finish reload "$file cannot be written"
try sync
finish done "/etc/berth/load.json"
