# Ends what belongs to a terminal inside its container, and reports on one line
# "killed kept left". POSIX sh, builtins only but for sleep and grep, which are
# optional: without sleep there is no grace, and without a grep that knows -z the
# shell reads for it.
#
#   sid=N start=N marker=WORD keep_detached=BOOL grace=N yield=BOOL
#   find_only=true marker=WORD
#
# sid, start: the shell's pid, which is its session's id, and its start time in
#   /proc/PID/stat. Another process can have the pid only when nothing of the
#   session is left; the start time tells it. With sid=find the shell is looked
#   for by the marker, and start is of no account. sid=none is a shell that is
#   gone: nothing tells its jobs from what was told to stay, so both do.
# marker: TERMGW_SESSION=<id>, in the environment of what the shell started.
# keep_detached: true spares what was told to stay, false ends everything.
# grace: the time between hang-up and kill, in hundredths of a second.
# yield: true signals nothing when something is another user's, and reports at
#   once what would be left: root's sweep then has the whole grace.
# find_only: true looks for the shell by the marker, prints "SID START", which is
#   "none 0" if it is gone, and does nothing else.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
sid= start=0 marker= keep_detached= grace= yield= find_only=false
for word; do
	value=${word#*=}
	case $word in
	sid=*) sid=$value ;;
	start=*) start=$value ;;
	marker=*) marker=$value ;;
	keep_detached=*) keep_detached=$value ;;
	grace=*) grace=$value ;;
	yield=*) yield=$value ;;
	find_only=*) find_only=$value ;;
	*) exit 2 ;;
	esac
done

# whole FILE: its contents as one line in $whole; fails without any: a process may end
# while its file is open. A command's name, which stands in /proc/PID/stat, may hold a
# newline.
whole() {
	whole=
	while IFS= read -r part || [ -n "$part" ]; do whole=$whole$part; done <"$1" && [ -n "$whole" ]
} 2>/dev/null

# spare: whether the container may start a few more processes, as its pids cgroup
# says. Bash would try for minutes (fork: retry).
spare() {
	for dir in /sys/fs/cgroup/pids /sys/fs/cgroup; do
		read -r most <"$dir/pids.max" && read -r used <"$dir/pids.current" || continue
		case $most$used in *[!0-9]*) continue ;; esac
		[ $((most - used)) -ge 8 ] || return 1
	done
	return 0
} 2>/dev/null

# tools: whether other processes may be started, in $forks, and whether grep can
# read for the shell, in $greps. BusyBox's grep sees no more of a file than its first
# NUL, unless it knows -z, which it does not everywhere.
tools() {
	forks=1 greps=0
	spare || forks=0
	[ "$forks" = 0 ] || ! printf 'a\0b' | grep -qaxzF b 2>/dev/null || greps=1
}

# marked: the processes that carry the marker, as " 12 34 ". Another user's
# environment cannot be read; such a process is found by its session only. Where a
# process's first thread has ended, the other threads have the environment.
marked() {
	marked=' '
	if [ "$greps" = 1 ]; then
		files=
		for file in $(grep -sl ') Z ' /proc/[0-9]*/stat); do files="$files ${file%stat}task/[0-9]*/environ"; done
		for file in $(grep -slaxzF "$marker" /proc/[0-9]*/environ $files); do
			pid=${file#/proc/}
			marked="$marked${pid%%/*} "
		done
	else
		for dir in /proc/[0-9]*; do
			for file in "$dir"/environ "$dir"/task/[0-9]*/environ; do
				whole "$file" || continue
				case $whole in *"$marker"*) marked="$marked${dir#/proc/} " ;; esac
				break
			done
		done
	fi
}

# leader: the shell, into $sid and $start. It carries the marker and leads its
# session; what started it does not carry it, and is not 1. In a container it has
# no parent (0). Elsewhere it has a terminal too, unlike what setsid started and
# another than 1 has adopted (systemd, containerd's shim). Of two, the elder.
leader() {
	sid=none start=0
	marked
	for pid in $marked; do
		whole "/proc/$pid/stat" || continue
		set -- ${whole##*) } # as in scan
		[ "$4" = "$pid" ] && [ "$2" != 1 ] || continue
		[ "$2" = 0 ] || [ "$5" != 0 ] || continue
		case $marked in *" $2 "*) continue ;; esac
		if [ "$sid" = none ] || [ "${20}" -lt "$start" ]; then
			sid=$pid start=${20}
		fi
	done
}

# ignores_hup SIGIGN: bit 0 of a process's SigIgn is SIGHUP. It is read in stat, where it
# stands in the one line, and not in status: bash reads a file again from where the
# last line ended, and in status a line begins elsewhere once the process has another
# state.
ignores_hup() {
	case $1 in *[13579]) return 0 ;; esac
	return 1
}

# candidates: the processes that scan looks at, as a list of directories in
# $candidates. A shell reads a file byte by byte: with grep it reads those files
# alone that have $sid where the session's id stands, and those of marked
# processes.
candidates() {
	candidates='/proc/[0-9]*'
	[ "$greps" = 1 ] || return 0
	candidates=
	for file in $(grep -sl ") [^)]* $sid [^)]*\$" /proc/[0-9]*/stat); do
		candidates="$candidates ${file%/stat}"
	done
	for pid in $marked; do
		case "$candidates " in *"/proc/$pid "*) ;; *) candidates="$candidates /proc/$pid" ;; esac
	done
}

# scan: $end gets the living processes that are to end, $kept counts the others.
scan() {
	end= kept=0
	[ "$keep_detached" = true ] || marked # else only a count needs it, once
	if [ "$sid" != none ] && whole "/proc/$sid/stat"; then
		set -- ${whole##*) }
		[ "${20}" = "$start" ] || sid=none
	fi
	candidates
	for dir in $candidates; do
		pid=${dir#/proc/}
		whole "$dir/stat" || continue
		set -- ${whole##*) } # state ppid pgrp session tty tpgid flags ...; ${20} is the start time, ${31} SigIgn
		if [ "${18:-0}" -lt 2 ]; then # else its first thread has ended, and others live
			case $1 in Z | X | x | '') continue ;; esac
			[ $(($7 & 4)) = 0 ] || continue # PF_EXITING: it is all but a zombie
		fi
		case $marked in *" $pid "*) mine=1 ;; *) mine=0 ;; esac
		if [ "$4" = "$sid" ]; then
			if [ "$keep_detached" = true ] && [ "$pid" != "$sid" ] && ignores_hup "${31}"; then
				kept=$((kept + 1))
			else
				end="$end $pid"
			fi
		elif [ "$mine" = 1 ]; then
			if [ "$keep_detached" = true ]; then kept=$((kept + 1)); else end="$end $pid"; fi
		fi
	done
}

# signal NAME: sends it to all that are to end. A stopped process hears only
# after SIGCONT. $seen collects whom we met, but for the shell. $took is 1 if the
# signal could be sent to one of them.
seen=' '
signal() {
	took=0
	for pid in $end; do
		case $1$seen in HUP*" $pid "*) continue ;; esac # some programs count
		kill -s "$1" "$pid" && took=1 && kill -s CONT "$pid"
		case $seen in *" $pid "*) continue ;; esac
		[ "$pid" = "$sid" ] || seen="$seen$pid "
	done 2>/dev/null
}

pause() {
	if [ "$forks" = 1 ]; then
		sleep 0.05 2>/dev/null || sleep 1 2>/dev/null
		return
	fi
	now
	wake=$((now + 5))
	while [ "$now" -lt "$wake" ]; do now; done
}

# now: the uptime in hundredths of a second, in $now.
now() {
	read -r now _ </proc/uptime
	now=${now%.*}${now#*.}
}

# visit PID DEPTH: adds a process to $tree, after its children.
visit() {
	children=
	[ "$2" = 0 ] || read -r children <"/proc/$1/task/$1/children"
	for child in $children; do visit "$child" "$(($2 - 1))"; done
	tree="$tree $1"
} 2>/dev/null

# children_first: hangs up on what the shell has started, each before its parent,
# which so reaps it: process 1 of a container may reap nothing. It starts no process,
# so that one can be started after it where their number is limited.
children_first() {
	tree= children= nested=' '
	read -r children <"/proc/$sid/task/$sid/children"
	for child in $children; do visit "$child" 100; done
	end=
	for pid in $tree; do
		alive "$pid" || continue # dash reaps late, and a zombie is not killed
		set -- ${whole##*) }
		if [ "$keep_detached" = true ]; then
			[ "$4" = "$sid" ] && ! ignores_hup "${31}" || continue
		fi
		[ "$yield" = false ] || ! foreign "$pid" || return 0
		end="$end $pid"
		[ "$2" = "$sid" ] || nested="$nested$pid "
	done
	all=$end
	now
	patience=$((now + grace / 4)) # for all together: some live on
	for pid in $all; do
		end=$pid
		signal HUP
		case $nested in
		*" $pid "*) await [ -d "/proc/$pid" ] ;; # its parent reaps it, which is next
		*) await alive "$pid" ;;
		esac
	done
	# A shell that reads a command reaps its jobs before the next prompt (dash).
	patience=$((now + grace / 4))
	for pid in $all; do
		alive "$pid" && continue
		await unended "$pid"
		[ -d "/proc/$pid" ] || continue
		kill -s INT "$sid"
		await [ -d "/proc/$pid" ]
	done
} 2>/dev/null

# await COMMAND...: waits while it succeeds, until $patience; for 50 ms without
# starting a process.
await() {
	now
	soon=$((now + 5))
	while [ "$now" -lt "$patience" ] && "$@"; do
		[ "$now" -lt "$soon" ] || pause
		now
	done
}

# unended PID: it is no zombie yet: nobody can reap it.
unended() {
	whole "/proc/$1/stat" || return
	set -- ${whole##*) }
	case $1 in Z | X | x | '') return 1 ;; esac
}

# alive PID: it is no zombie, nor all but one (PF_EXITING).
alive() {
	unended "$1" || return
	set -- ${whole##*) }
	[ $(($7 & 4)) = 0 ]
}

# foreign PID: it lives, and is another user's. What has just ended takes no signal
# either.
foreign() {
	! kill -s 0 "$1" 2>/dev/null && alive "$1"
}

now
deadline=$((now + grace))
forks=1
spare || forks=0
case $sid in
'' | *[!0-9]*) ;; # find, none
*)
	if whole "/proc/$sid/stat"; then
		set -- ${whole##*) }
		[ "${20}" != "$start" ] || children_first
	fi
	;;
esac
tools
if [ "$find_only" = true ]; then
	leader
	echo "$sid $start"
	exit
elif [ "$sid" = find ]; then
	leader
	[ "$sid" = none ] || children_first
else
	marked
fi
scan
for pid in $end; do
	if [ "$yield" = true ] && foreign "$pid"; then
		set -- $end
		echo "0 $kept $#"
		exit
	fi
done
signal HUP
while [ -n "$end" ] && [ "$now" -lt "$deadline" ] && pause; do
	now
	scan
done
deadline=$((now + 100))
latest=$((now + 500)) # a killed process may take a while, on a busy machine
took=0
while [ -n "$end" ] && { [ "$now" -lt "$deadline" ] || { [ "$took" = 1 ] && [ "$now" -lt "$latest" ]; }; }; do
	signal KILL
	pause
	now
	scan
done

set -- $end
left=$#
set -- $seen
killed=$(($# - left))
[ "$killed" -ge 0 ] || killed=0
echo "$killed $kept $left"
