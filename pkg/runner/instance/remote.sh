# The instance's part of a terminal. POSIX sh, by the account's login shell.
#
#   self sweep mode=MODE target=TARGET session=ID keep_detached=BOOL grace=N lease=N retry=N WORD=VALUE... [name=NAME]...
#
# self, sweep: this script and sweep.sh, which go to children.
# target: container or host. keep_detached, grace: as in sweep.sh. lease: how long
#   a gateway may be silent, in seconds. retry: the first pause before another
#   sweep, in seconds.
#
# mode, and the words that it takes:
#   choose  dir shell keys opening own name...  opens a terminal in the first container
#           of these names that runs; own is the name that may be an id
#   direct  dir shell keys opening container    opens it in this one, unseen
#   host                                    opens a login shell
#   watch   container shell sid start pid   sweeps when the terminal on fd 4 is
#           gone, or the gateway, and again for an hour while the engine does not
#           answer that; pid is what runs on the terminal
#   end     container shell sid start       sweeps, and reports as sweep.sh does,
#           or "nonsense" where the container does not answer
#
# What the gateway is told goes before the shell's first byte, between RS bytes:
# "in CONTAINER", then the shell's /proc/PID/stat; or "error STEP WORDS".
self=$1 sweep=$2
shift 2
mode= target= session= keep_detached= grace= lease= retry=
container= dir= shell= keys= opening= own= sid= start= pid=
while [ $# -gt 0 ]; do
	value=${1#*=}
	case $1 in
	mode=*) mode=$value ;;
	target=*) target=$value ;;
	session=*) session=$value ;;
	keep_detached=*) keep_detached=$value ;;
	grace=*) grace=$value ;;
	lease=*) lease=$value ;;
	retry=*) retry=$value ;;
	container=*) container=$value ;;
	dir=*) dir=$value ;;
	shell=*) shell=$value ;;
	keys=*) keys=$value ;;
	opening=*) opening=$value ;;
	own=*) own=$value ;;
	sid=*) sid=$value ;;
	start=*) start=$value ;;
	pid=*) pid=$value ;;
	name=*) break ;; # the rest are names
	*) exit 2 ;;
	esac
	shift
done
marker=TERMGW_SESSION=$session
PATH=${PATH:-/usr/bin:/bin}:/usr/local/bin:/usr/sbin:/sbin:/snap/bin
set -f # what a container has said is split into words here

tell() { printf '\036%s\036' "$*"; }
fail() {
	tell error "$@"
	exit 1
}

# numbers COUNT WORD...: whether the words are so many numbers. In an expression,
# any other word can be a command ("a[$(reboot)]"), and 08 is a fault.
numbers() {
	[ $# = $(($1 + 1)) ] || return 1
	shift
	for word; do
		case $word in *[!0123456789]* | '' | 0?* | ????????????????*) return 1 ;; esac
	done
}

# soon: sweeps, and what goes with them, have this long from now on, all together:
# until $deadline.
soon() {
	read -r now _ </proc/uptime
	deadline=$((${now%.*} + 2 * grace / 100 + 6))
}

# bounded COMMAND...: runs it until the deadline, and nothing after that.
bounded() {
	read -r now _ </proc/uptime
	now=${now%.*}
	[ "$now" -ge "$deadline" ] || timeout -s KILL "$((deadline - now))" "$@"
}

# one [root] ARGS...: one run of sweep.sh, as the session's user or as root. What
# it says is the container's own word, whose shell may be any program: it may say
# anything, without end, or nothing and stay.
one() {
	as=
	if [ "$1" = root ]; then
		as=root
		shift
	fi
	case $as$target in
	host) bounded /bin/sh -c "$sweep" termgw-sweep "$@" | head -c 100 ;;
	roothost) bounded sudo -n /bin/sh -c "$sweep" termgw-sweep "$@" | head -c 100 ;;
	*)
		# The session's shell may be gone, and so may the working directory.
		for sh in "$shell" /bin/sh /bin/bash; do
			said=$({
				bounded docker exec ${as:+-u 0} -w / -e BASH_ENV= -e ENV= -e LD_PRELOAD= "$container" "$sh" -c "$sweep" termgw-sweep "$@"
				echo " $?"
			} | head -c 100)
			case $said in *" 126" | *" 127") ;; *) break ;; esac
		done
		printf '%s\n' "${said% *}" # dash's echo would read escapes
		;;
	esac
}

# look: what the engine says of the container, in $state: gone, running, crowded
# by execs, or unknown, as when it is paused; and the execs that run there, in
# $execs.
look() {
	set -- $(bounded docker inspect --type container -f '{{.State.Running}} {{.State.Paused}}{{range .ExecIDs}} {{.}}{{end}}' "$container" 2>&1 | head -c 10000)
	state=unknown execs=
	case "$*" in
	false\ * | *[Nn]o\ such\ [co]*) state=gone ;; # container, object; not the engine's socket, a file
	true\ false*)
		shift 2
		state=running execs=$*
		[ $# -lt 128 ] || state=crowded
		;;
	esac
}

# hangs: whether an exec still runs that began with the last sweep, which did not
# answer.
hangs() {
	for exec in $hung; do
		case " $execs " in *" $exec "*) return 0 ;; esac
	done
	return 1
}

# unanswered: what a sweep means that has not answered. A container that does not
# run has nothing left; one that runs is to blame itself: "nonsense", and 2.
unanswered() {
	if [ "$target" = container ]; then
		read -r now _ </proc/uptime
		deadline=$((${now%.*} + 3))
		look
		case $state in
		gone)
			echo 0 0 0
			return 0
			;;
		running | crowded)
			for exec in $execs; do
				case " $before " in *" $exec "*) ;; *) hung="$hung $exec" ;; esac
			done
			echo nonsense
			return 2
			;;
		esac
	fi
	return 1
}

# all: sweeps as the user; if something is another's, as root and as the user
# again. No engine ends an exec, and a sweep that hangs stays when its docker
# command is killed: so none is started where the last one hangs, nor in a
# container where many execs run.
hung= before=
all() {
	soon
	words="sid=$sid start=$start marker=$marker keep_detached=$keep_detached grace=$grace" # none holds a blank
	if [ "$target" = container ]; then
		look
		if [ "$state" = crowded ] || hangs; then
			echo nonsense
			return 2
		fi
		before=$execs
	fi
	set -- $(one $words yield=true)
	if ! numbers 3 "$@"; then
		unanswered
		return
	fi
	killed=$1
	if [ "$3" != 0 ]; then
		set -- $(one root $words yield=false)
		numbers 3 "$@" || set -- 0 # nobody may be root, say: the next tells what is left
		killed=$1
		set -- $(one $words yield=false)
		if ! numbers 3 "$@"; then
			unanswered
			return
		fi
		killed=$((killed + $1))
	fi
	echo "$killed $2 $3"
}

# guard SID START: leaves behind what sweeps when nobody else does. It has a
# session of its own: a hang-up is not for it, nor a Ctrl-C, nor its own sweep.
guard() {
	exec 4<&0
	setsid /bin/sh -c 'eval "$1"' termgw "$self" "$sweep" mode=watch target="$target" session="$session" \
		keep_detached="$keep_detached" grace="$grace" lease="$lease" retry="$retry" \
		container="$container" shell="$shell" sid="$1" start="$2" pid="$$" </dev/null >/dev/null 2>&1 &
	exec 4<&-
}

# silence: for how many seconds the gateway has sent nothing on this connection, in
# $silence; 0 when nothing tells. A gateway that lives sends something every 15 s;
# what lies between can be open, and acknowledge all that is sent to it, without
# any gateway at its other end.
silence() {
	silence=
	set -- $SSH_CONNECTION # their address and port, our address and port
	for word in $(ss -tni "sport = :$4 and dport = :$2" 2>/dev/null); do
		case $word in lastrcv:*) ;; *) continue ;; esac
		word=${word#lastrcv:}
		numbers 1 "$word" || continue
		word=$((word / 1000))
		[ "${silence:-$word}" -lt "$word" ] || silence=$word # of two with the same ports, which is rare
	done
	silence=${silence:-0}
}

# resized: has docker look at the terminal's size. It starts to listen for a new one
# some time after the shell has, and what came before, as a browser's does, is lost.
resized() { kill -s WINCH "$pid"; } 2>/dev/null

# choose NAME...: the first of the names that runs, in $container; the names as
# name=NAME. The engine
# also finds a container by the start of its id, which is not how workspaces are
# named; it counts one as running that is paused, and runs nothing in it.
choose() {
	for name; do
		shift
		set -- "$@" "${name#name=}"
	done
	list=$(docker inspect --type container -f '{{.Id}} {{.Name}} {{.State.Running}} {{.State.Paused}}' "$@" 2>&1)
	container= seen= other=
	for name; do
		while read -r id path running paused more; do
			[ -n "$id" ] || continue
			case $id$path$running$paused in
			*/*truefalse | */*truetrue | */*falsefalse) ;;
			*)
				case "$id $path $running $paused $more" in
				*[Nn]o\ such\ [co]*) ;; # as in look
				*) other=$id\ $path\ $running\ $paused\ $more ;;
				esac
				continue
				;;
			esac
			[ "$path" = "/$name" ] || { [ "$name" = "$own" ] && [ "$id" = "$name" ]; } || continue
			case $running$paused in
			truefalse)
				container=$id
				return
				;;
			truetrue) seen="$seen $name is paused" ;;
			*) seen="$seen $name is stopped" ;;
			esac
		done <<-LIST
			$list
		LIST
	done
	[ -z "$other" ] || fail docker "$other"
	fail not_running "${seen:- looked for $*}"
}

case $mode in
choose | direct)
	command -v docker >/dev/null || fail docker there is no docker command on the instance
	[ "$mode" = direct ] || choose "$@"
	tell in "$container"
	guard find 0
	case $shell in */bash) set -- -p ;; *) set -- ;; esac # pkg/runner, ShellCommand
	exec docker exec -it ${dir:+-w "$dir"} --detach-keys "$keys" -e TERM=xterm-256color -e COLORTERM=truecolor -e TERM_PROGRAM=termgw \
		-e "$marker" "$container" "$shell" "$@" -c "$opening" "$shell"
	;;
host)
	IFS= read -r stat </proc/$$/stat
	set -- ${stat##*) }
	tell in host
	guard "$$" "${20}"
	tell "$stat"
	export "$marker" COLORTERM=truecolor TERM_PROGRAM=termgw
	[ -n "$LANG$LC_ALL$LC_CTYPE" ] || export LANG=C.UTF-8
	exec "${SHELL:-/bin/sh}" -l
	;;
watch)
	trap '' HUP INT TERM
	# What is known early is known when the shell has lost its marker. Not at
	# once: it costs as much as the terminal's own start.
	if [ "$sid" = find ]; then
		sleep 0.3 2>/dev/null
		resized
		sleep 1
		resized
		soon
		look
		set --
		[ "$state" = crowded ] || set -- $(one find_only=true marker="$marker")
		if numbers 2 "$@"; then sid=$1 start=$2; fi
	fi
	# A terminal that was hung up is none any more. Nothing tells a shell script
	# so; a look costs 1 ms of CPU, and one at the connection 5 ms.
	left=$lease
	while [ -t 4 ]; do
		sleep 5
		[ "$left" != "$lease" ] || [ "$target" = host ] || resized # on a machine that is busy
		left=$((left - 5))
		[ "$left" -gt 0 ] && continue
		silence
		left=$((lease - silence))
		[ "$left" -gt 0 ] || break
	done
	exec 4<&-
	sleep 2 # for the gateway, which counts
	# A container that is paused, or an engine that is silent, answers later. One
	# that runs and does not answer has few tries.
	tries=4
	for pauses in 1 2 4 8 16 32 60 60 60 60 60 60 60 60 60 60 60; do
		all && exit
		[ $? != 2 ] || tries=$((tries - 1))
		[ "$tries" -gt 0 ] || exit
		sleep "$((pauses * retry))"
	done
	all
	;;
end) all ;;
esac
