# The instance's part of a terminal. POSIX sh, by the account's login shell.
#
#   self sweep mode=MODE target=TARGET session=ID sudo=BOOL keep_detached=BOOL grace=N lease=N retry=N WORD=VALUE... [name=NAME]...
#
# self, sweep: this script and sweep.sh, which go to children.
# sudo: whether docker is run by sudo.
# target: container or host. keep_detached, grace: as in sweep.sh. lease: how long
#   a gateway may be silent, in seconds; 0: the keeper sees to that. retry: the first pause before another
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
#   look    tells what an operator should know of the instance
#
# What the gateway is told goes before the shell's first byte, between RS bytes:
# "runs" at once, "in CONTAINER", then the shell's /proc/PID/stat; or "error STEP
# WORDS". Mode look tells "look WHAT WORDS".
#
# Of programs, docker alone is needed. Without setsid, timeout or head the shell
# does their work, and without ss nothing tells that a gateway is silent.
self=$1 sweep=$2
shift 2
mode= target= session= sudo= keep_detached= grace= lease= retry=
container= dir= shell= keys= opening= own= sid= start= pid=
while [ $# -gt 0 ]; do
	value=${1#*=}
	case $1 in
	mode=*) mode=$value ;;
	target=*) target=$value ;;
	session=*) session=$value ;;
	sudo=*) sudo=$value ;;
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
docker=docker
[ "$sudo" != true ] || docker='sudo -n docker'

has() { command -v "$1" >/dev/null 2>&1; }

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
	now=$((deadline - ${now%.*}))
	if [ "$now" -le 0 ]; then
		return
	elif has timeout; then
		timeout -s KILL "$now" "$@"
		return
	fi
	"$@" </dev/null &
	bounded=$!
	while read -r now _ </proc/uptime && [ "${now%.*}" -lt "$deadline" ]; do sleep 1; done </dev/null >/dev/null 2>&1 &&
		kill -s KILL "$bounded" 2>/dev/null &
	late=$!
	{
		wait "$bounded"
		set -- "$?"
		kill -s KILL "$late"
		wait "$late"
	} 2>/dev/null
	return "$1"
}

# first COUNT: the first bytes of what comes; without head, whole lines, which may
# be more.
first() {
	if has head; then
		head -c "$1"
		return
	fi
	lines=0
	while [ "$lines" -lt 20 ] && { IFS= read -r line || [ -n "$line" ]; }; do
		lines=$((lines + 1))
		printf '%s\n' "$line"
	done
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
	host) bounded /bin/sh -c "$sweep" termgw-sweep "$@" | first 100 ;;
	roothost) bounded sudo -n /bin/sh -c "$sweep" termgw-sweep "$@" | first 100 ;;
	*)
		# The session's shell may be gone, and so may the working directory.
		for sh in "$shell" /bin/sh /bin/bash; do
			said=$({
				bounded $docker exec ${as:+-u 0} -w / -e BASH_ENV= -e ENV= -e LD_PRELOAD= "$container" "$sh" -c "$sweep" termgw-sweep "$@"
				echo " $?"
			} | first 100)
			case $said in *" 126" | *" 127") ;; *) break ;; esac
		done
		printf '%s\n' "${said% *}" # dash's echo would read escapes
		;;
	esac
}

# no_such WORDS: whether an engine says that there is no such container, or object.
# Its socket may be missing too, which is a file.
no_such() {
	case $1 in *[Nn]o\ such\ [co]*) return 0 ;; esac
	return 1
}

# look: what the engine says of the container, in $state: gone, running, crowded
# by execs, or unknown, as when it is paused; and the execs that run there, in
# $execs. Podman's docker command says first that it is one.
look() {
	said=$(bounded $docker inspect --type container -f 'found {{.State.Running}} {{.State.Paused}}{{range .ExecIDs}} {{.}}{{end}}' "$container" 2>&1 | first 10000)
	state=unknown execs=
	case $said in
	*found\ false\ false*) state=gone ;;
	*found\ true\ false*)
		set -- ${said##*found true false}
		state=running execs=$*
		[ $# -lt 128 ] || state=crowded
		;;
	*found\ *) ;;
	*) ! no_such "$said" || state=gone ;;
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

# apart COMMAND...: becomes it, in a session of its own where anything can do that.
apart() {
	if has setsid; then
		exec setsid "$@"
	elif has python3; then
		exec python3 -c 'import os, sys; os.setsid(); os.execv(sys.argv[1], sys.argv[1:])' "$@"
	elif has perl; then
		exec perl -e 'use POSIX; POSIX::setsid(); exec @ARGV' "$@"
	fi
	exec "$@"
}

# guard SID START: leaves behind what sweeps when nobody else does. It has a
# session of its own: a hang-up is not for it, nor a Ctrl-C, nor its own sweep.
# Without one it ignores them, and a sweep that ends everything ends it too.
guard() {
	has sleep || return # it would never rest
	exec 4<&0
	{
		trap '' HUP INT TERM TSTP # a hang-up may come before it has its session
		apart /bin/sh -c 'eval "$1"' termgw "$self" "$sweep" mode=watch target="$target" session="$session" sudo="$sudo" \
			keep_detached="$keep_detached" grace="$grace" lease="$lease" retry="$retry" \
			container="$container" shell="$shell" sid="$1" start="$2" pid="$$"
	} </dev/null >/dev/null 2>&1 &
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
# A docker of root's takes no signal from here, but the terminal's own: when it
# grows by a row and shrinks again.
resized() {
	if [ "$sudo" != true ]; then
		kill -s WINCH "$pid"
		return
	fi
	was=$(stty size <&4) || return
	stty rows "$((${was% *} + 1))" <&4
	[ "$(stty size <&4)" != "$((${was% *} + 1)) ${was#* }" ] || stty rows "${was% *}" <&4
} 2>/dev/null

# early: whether a docker on a busy machine may not listen yet. Root's is asked once, since
# the person sees that.
early() { [ "$left" = "$lease" ] || { [ "$sudo" != true ] && [ "$left" -gt "$((lease - 30))" ]; }; }

# choose NAME...: the first of the names that runs, in $container; the names as
# name=NAME. The engine also finds a container by the start of its id, which is not
# how workspaces are named; it counts one as running that is paused, and runs
# nothing in it. Podman's names have no slash before them.
choose() {
	for name; do
		shift
		set -- "$@" "${name#name=}"
	done
	list=$($docker inspect --type container -f 'found {{.Id}} {{.Name}} {{.State.Running}} {{.State.Paused}}' "$@" 2>&1)
	container= seen= other=
	for name; do
		while read -r found id path running paused more; do
			if [ "$found" != found ]; then
				line="$found $id $path $running $paused $more"
				case $line in ' '* | 'Emulate Docker CLI using podman'*) continue ;; esac
				no_such "$line" || other=$line
				continue
			fi
			[ "${path#/}" = "$name" ] || { [ "$name" = "$own" ] && [ "$id" = "$name" ]; } || continue
			case $running$paused in
			truefalse)
				container=$id
				return
				;;
			*true) seen="$seen $name is paused" ;;
			*) seen="$seen $name is stopped" ;;
			esac
		done <<-LIST
			$list
		LIST
	done
	[ -z "$other" ] || fail docker "$other"
	fail not_running "${seen:- looked for $*}"
}

# max_sessions: sshd's MaxSessions, where its configuration may be read.
max_sessions() {
	set +f
	for file in /etc/ssh/sshd_config.d/*.conf /etc/ssh/sshd_config; do
		while read -r key value _; do
			case $key in
			[Mm][Aa][Xx][Ss][Ee][Ss][Ss][Ii][Oo][Nn][Ss])
				echo "$value"
				return
				;;
			esac
		done <"$file"
	done
} 2>/dev/null

# kills: whether systemd ends what a login leaves.
kills() {
	set +f
	kills=no
	for file in /usr/lib/systemd/logind.conf.d/*.conf /etc/systemd/logind.conf /etc/systemd/logind.conf.d/*.conf; do
		while IFS='= ' read -r key value _; do
			[ "$key" != KillUserProcesses ] || kills=$value
		done <"$file"
	done
	case $kills in
	yes | true | on | 1) [ -e "/var/lib/systemd/linger/$(id -un)" ] || echo yes ;;
	esac
} 2>/dev/null

# docker_words: whether docker can be used, as "ok VERSION" or "failed WORDS".
docker_words() {
	if ! has "${docker%% *}"; then
		echo "failed there is no ${docker%% *} command on the instance"
		return
	fi
	said=$({
		bounded $docker ps -q 2>&1 >/dev/null
		echo " $?"
	} | first 1000)
	case $said in
	*' 0') echo "ok $(bounded $docker --version 2>/dev/null | first 100)" ;;
	*' 137' | '') echo "failed it does not answer" ;;
	*) echo "failed ${said% *}" ;;
	esac
}

case $mode in
choose | direct)
	tell runs
	has "${docker%% *}" || fail docker "there is no ${docker%% *} command on the instance"
	# What sweeps has no terminal, so sudo has to do without.
	[ "$sudo" != true ] || said=$( (apart $docker --version) </dev/null 2>&1) || fail docker "$said"
	[ "$mode" = direct ] || choose "$@"
	tell in "$container"
	guard find 0
	case $shell in */bash) set -- -p ;; *) set -- ;; esac # pkg/runner, ShellCommand
	exec $docker exec -it ${dir:+-w "$dir"} --detach-keys "$keys" -e TERM=xterm-256color -e COLORTERM=truecolor -e TERM_PROGRAM=termgw \
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
	trap '' HUP INT TERM TSTP
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
		! early || [ "$target" = host ] || resized
		left=$((left - 5))
		[ "$left" -gt 0 ] || [ "$lease" = 0 ] && continue
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
look)
	soon
	lacks=
	for tool in setsid timeout head sleep grep ss sudo; do has "$tool" || lacks="$lacks $tool"; done
	tell look lacks "$lacks"
	read -r _ </proc/1/stat 2>/dev/null && tell look proc open
	tell look sessions "$(max_sessions)"
	tell look kills "$(kills)"
	if [ "$target" = container ]; then
		tell look docker "$(docker_words)"
	elif [ "$lacks" = "${lacks% sudo}" ] && bounded sudo -n true >/dev/null 2>&1; then
		tell look root may
	else
		tell look root no
	fi
	;;
esac
