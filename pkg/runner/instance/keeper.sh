# Finds the keeper on an instance, or puts it there. POSIX sh, by the account's login shell.
#
#   self mode=MODE WORD=VALUE...
#
# mode, and the words that it takes:
#   find  x86_64=HASH aarch64=HASH   starts the keeper whose file is here; HASH names it.
#         Every person waits for this at the first terminal: so each program that runs counts
#   put   hash=HASH sum=SHA256 packed=BOOL skip=N  takes the file from stdin, packed by gzip or not,
#         into the first directory after N others, and starts it
#
# Both report between RS bytes: "keeper FILE SOCKET"; or "missing MACHINE PACKED", for
# a put; or "none WORDS", where there can be no keeper; or "failed N WORDS": the
# directory N did not do, another may.
mode= hash= sum= packed= skip=0 x86_64= aarch64=
shift
for word; do
	value=${word#*=}
	case $word in
	mode=*) mode=$value ;;
	x86_64=*) x86_64=$value ;;
	aarch64=*) aarch64=$value ;;
	hash=*) hash=$value ;;
	sum=*) sum=$value ;;
	packed=*) packed=$value ;;
	skip=*) skip=$value ;;
	*) exit 2 ;;
	esac
done
PATH=${PATH:-/usr/bin:/bin}:/usr/local/bin:/usr/sbin:/sbin
umask 077

tell() { printf '\036%s\036' "$*"; }
has() { command -v "$1" >/dev/null 2>&1; }
none() {
	tell none "$*"
	exit
}

# directories COMMAND: calls it with each directory that may hold the keeper, most
# lasting first. What is in /run/user goes with the last login.
directories() {
	uid=$(id -u) || none "there is no id command"
	"$1" "${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/termgw" &&
		"$1" "/var/tmp/termgw-$uid" &&
		"$1" "/tmp/termgw-$uid" &&
		"$1" "/dev/shm/termgw-$uid"
}

# own DIR: whether it is the account's, and no link to what another may write.
own() { [ -O "$1" ] && [ ! -L "$1" ]; }

# start DIR: starts the keeper in it, if its file is there. The keeper reports by itself.
start() {
	own "$1" || return 0
	for hash in $x86_64 $aarch64; do
		[ ! -x "$1/keeper-$hash" ] || ! "$1/keeper-$hash" start "$1" 2>/dev/null || exit 0
	done
}

# put DIR: takes the file there. What stdin has is gone then.
put() {
	tried=$((tried + 1))
	[ "$tried" -gt "$skip" ] || return 0
	temporary=$1/.keeper-$$
	mkdir -p "$1" && own "$1" && chmod 700 "$1" &&
		printf '#!/bin/sh\nexit 0\n' >"$temporary" && chmod 700 "$temporary" && "$temporary" || {
		said="$1 cannot hold a program" # it is read-only, full, or its file system is mounted noexec
		rm -f "$temporary"
		return 0
	} 2>/dev/null
	case $packed in
	true) gzip -dc ;;
	*) cat ;;
	esac >"$temporary" 2>/dev/null
	said=$(sha256sum <"$temporary")
	if [ "${said%% *}" = "$sum" ] && mv "$temporary" "$1/keeper-$hash"; then
		said=$("$1/keeper-$hash" start "$1" 2>&1 >/dev/null) && x86_64=$hash && start "$1"
		tell failed "$tried" "$1: $said"
	else
		rm -f "$temporary"
		tell failed "$tried" "$1: the file did not arrive whole"
	fi
	exit
}

case $mode in
find)
	start "${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/termgw"
	directories start
	machine=$(uname -s) && [ "$machine" = Linux ] && machine=$(uname -m) || none "it is no Linux"
	case $machine in
	x86_64) hash=$x86_64 ;;
	aarch64) hash=$aarch64 ;;
	*) hash= ;;
	esac
	[ -n "$hash" ] || none "there is no keeper for $machine"
	has sha256sum || none "there is no sha256sum command"
	has gzip && packed=true
	tell missing "$machine" "${packed:-false}"
	;;
put)
	tried=0 said=
	directories put
	none "no directory can hold the keeper, the last of them was: $said"
	;;
esac
