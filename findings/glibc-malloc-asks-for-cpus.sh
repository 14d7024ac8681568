#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# malloc() of the GNU C library opens a file: in the ninth thread of a program that is alive beside the others, when it allocates for the
# first time, /sys/devices/system/cpu/online, and where that fails it calls sched_getaffinity(). A seccomp filter that was made by watching
# eight threads ends the program at the ninth.
#
#   software   glibc 2.36 (Debian 2.36-9+deb12u14), libseccomp 2.5.4 (Debian 2.5.4-1+deb12u1)
#   input      valid: threads that allocate 100 bytes each, under a filter that forbids opening files, loaded before them
#   expected   malloc() takes memory by brk(), mmap(), mprotect() and the like, in each thread alike
#   seen       eight threads have their memory; the ninth makes the process end by SIGSYS. If openat() is only refused (EACCES) and
#              sched_getaffinity() forbidden, it ends there. With both refused all twenty have memory
#   and        twenty threads one after another, or MALLOC_ARENA_MAX=2: no such call
#
# Each thread gets an arena of its own, up to a limit that goes by the number of CPUs (eight for each). glibc counts the CPUs only when there
# are more than eight arenas (M_ARENA_TEST), so a test with few threads never sees it, on whatever machine. A thread whose first call is
# free() gets its arena there. glibc 2.41 (Debian 13), tried by hand, does the same.
# Why it matters to vhost-pci: the daemon ended with SIGSYS, once, in a thread that opens nothing and only freed something; now the calls
# fail there (daemon/sandbox/seccomp.c).
#
# Needs apt with Debian 12's lists, 200 MB of space in TMPDIR and about a quarter of a minute. Installs nothing on this machine.
set -eu

GLIBC=2.36-9+deb12u14
PINNED="libc6=$GLIBC libseccomp2=2.5.4-1+deb12u1 python3.11=3.11.2-6+deb12u9"

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT INT TERM
root=$tmp/root
lib=usr/lib/x86_64-linux-gnu

# ---- the packages, with all that they need, into a folder of their own ---------------------------------------------
mkdir -p "$tmp/apt/archives/partial" "$tmp/apt/state" "$root"
: >"$tmp/apt/status"
cat >"$tmp/apt.conf" <<END
Dir::State "$tmp/apt/state";
Dir::State::status "$tmp/apt/status";
Dir::State::Lists "$(eval "$(apt-config shell D Dir::State::Lists/d)"; echo "$D")";
Dir::Cache "$tmp/apt";
APT::Install-Recommends "0";
APT::Sandbox::User "";
END
# shellcheck disable=SC2086
APT_CONFIG=$tmp/apt.conf apt-get install -qq -y --download-only $PINNED >"$tmp/apt.log" 2>&1 || { cat "$tmp/apt.log"; exit 1; }
for p in "$tmp"/apt/archives/*.deb; do
	dpkg-deb -x "$p" "$root"
done

# ---- a program with threads and a filter -----------------------------------------------------------------------------
cat >"$tmp/threads.py" <<'END'
import ctypes, os, sys, threading

how, n, openat, affinity = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
ACTIONS = {'allowed': None, 'refused': 0x00050000 | 13, 'forbidden': 0x80000000}	# SCMP_ACT_ERRNO(EACCES), SCMP_ACT_KILL_PROCESS
libc, seccomp = ctypes.CDLL(None), ctypes.CDLL('libseccomp.so.2')
libc.malloc.restype = seccomp.seccomp_init.restype = ctypes.c_void_p
end = threading.Event()


def body(has):
    if libc.malloc(100):
        os.write(1, b'.')
    has.set()
    if how == 'at once':
        end.wait()


ctx = ctypes.c_void_p(seccomp.seccomp_init(0x7fff0000))		# SCMP_ACT_ALLOW
for call, what in ((b'openat', openat), (b'sched_getaffinity', affinity)):
    if ACTIONS[what] is not None:
        assert seccomp.seccomp_rule_add(ctx, ctypes.c_uint32(ACTIONS[what]), seccomp.seccomp_syscall_resolve_name(call), 0) == 0
assert seccomp.seccomp_load(ctx) == 0
there = []
for _ in range(n):
    has = threading.Event()
    there.append(threading.Thread(target=body, args=(has,)))
    there[-1].start()
    has.wait()
    if how != 'at once':
        there[-1].join()
end.set()
for t in there:
    t.join()
os._exit(0)
END

# ---- run -------------------------------------------------------------------------------------------------------------
run() { # HOW THREADS OPENAT SCHED_GETAFFINITY
	r=0
	PYTHONHOME=$root/usr timeout 60 "$root/lib64/ld-linux-x86-64.so.2" --library-path "$root/$lib:$root/lib/x86_64-linux-gnu" \
		"$root/usr/bin/python3.11" -B "$tmp/threads.py" "$@" >"$tmp/dots" 2>"$tmp/err" || r=$?
	case $r in
	0) r="it ends well" ;;
	159) r="SIGSYS" ;;	# 128 + 31
	*) r="ends with $r"; cat "$tmp/err" ;;
	esac
	echo "$2 threads $1, openat $3, sched_getaffinity $4: $(wc -c <"$tmp/dots") have memory, $r"
}
{
	run 'at once' 8 forbidden forbidden
	run 'at once' 20 forbidden forbidden
	run 'at once' 20 refused forbidden
	run 'at once' 20 refused refused
	run 'one after another' 20 forbidden forbidden
	export MALLOC_ARENA_MAX=2
	echo "with MALLOC_ARENA_MAX=2:"
	run 'at once' 20 forbidden forbidden
} >"$tmp/seen" 2>"$tmp/shell"

cat >"$tmp/want" <<'END'
8 threads at once, openat forbidden, sched_getaffinity forbidden: 8 have memory, it ends well
20 threads at once, openat forbidden, sched_getaffinity forbidden: 8 have memory, SIGSYS
20 threads at once, openat refused, sched_getaffinity forbidden: 8 have memory, SIGSYS
20 threads at once, openat refused, sched_getaffinity refused: 20 have memory, it ends well
20 threads one after another, openat forbidden, sched_getaffinity forbidden: 20 have memory, it ends well
with MALLOC_ARENA_MAX=2:
20 threads at once, openat forbidden, sched_getaffinity forbidden: 20 have memory, it ends well
END
echo "glibc $GLIBC (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	exit 1
fi
echo "AS DESCRIBED: the ninth thread's malloc() opens a file, and asks for the CPUs where it may not"
