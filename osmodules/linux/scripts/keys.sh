# keys.sh clears what whoever made the image left: private SSH keys in every account, and keys that let others in as
# root. Keys that let others in to other accounts are the image's accounts and stay; they are counted.
#
# KEY	our own public key (its base64 word); empty when we log in by password

# private FOLDER: remove the private keys in it.
private() {
	for file in "$1"/* "$1"/.[!.]*; do
		if test -f "$file" && test ! -L "$file" && grep -q -e '-----BEGIN [A-Z ]*PRIVATE KEY-----' "$file" 2>/dev/null; then
			rm -f "$file" || finish reload "$file cannot be removed"
			removed=$((removed + 1))
		fi
	done
}

# holds FILE: is our key in it?
holds() {
	while IFS= read -r entry || test -n "$entry"; do
		case " $entry " in
		' #'*) ;;
		*" $KEY "*) return 0 ;;
		esac
	done <"$1"
	return 1
}

removed=0 others=0 left=0 kept=no
roots=
while IFS=: read -r name _ uid _ _ home _; do
	case $home in
	/ | /*[!A-Za-z0-9/._-]* | '') continue ;;
	/*) ;;
	*) continue ;;
	esac
	folder=$ROOT$home/.ssh
	test -d "$folder" || continue
	private "$folder"
	for file in "$folder/authorized_keys" "$folder/authorized_keys2"; do
		test -f "$file" || continue
		if test "$uid" = 0; then
			roots="$roots $file"
			if test -n "$KEY" && holds "$file"; then
				kept=yes
			fi
		elif test -s "$file"; then
			left=$((left + 1))
		fi
	done
done <"$ROOT/etc/passwd"

note=
test $left = 0 || note="; $left of other accounts' authorized_keys left"
if test -n "$KEY" && test $kept = no; then
	finish warned "$removed private keys removed; our own key is not in root's authorized_keys, so that was left as it is$note"
fi
for file in $roots; do
	while IFS= read -r entry || test -n "$entry"; do
		case " $entry " in
		'  ' | ' #'*) ;;
		*" ${KEY:-none of them} "*) printf '%s\n' "$entry" ;;
		*) others=$((others + 1)) ;;
		esac
	done <"$file" >"$file.berth-new" && chmod 600 "$file.berth-new" && mv -f "$file.berth-new" "$file" ||
		finish reload "$file cannot be written"
done
finish done "$removed private keys and $others of root's authorized keys removed$note"
