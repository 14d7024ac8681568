#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# DPDK's virtio driver marks parts of what it transmits as device-writable, when rings are packed and a packet goes out by an indirect
# table: the virtio-net header in each table, and in the table of the ring's n-th entry the n-th piece as well.
#
#   software   dpdk-testpmd 22.11 (Debian 22.11.11-0+deb12u1) with a net_virtio_user port that transmits packets of three pieces
#   input      valid: a vhost-user back-end that offers VERSION_1, RING_PACKED and INDIRECT_DESC; it only looks at the transmit ring
#   expected   none of a table's entries has VIRTQ_DESC_F_WRITE: what the driver sends, the device reads (virtio 1.2, 2.8, "Write Flag")
#   seen       header and first piece of the packet in entry 1, header and second piece in entry 2, and so on, are WRITE, though the
#              device-readable ones have to come first
#   and        without INDIRECT_DESC, with the chain in the ring, and with a split ring and tables, no entry is WRITE
#
# The driver leaves WRITE in all entries of its tables when it makes them, and one number is compared with both the place in the table and the
# place in the ring. DPDK's vhost library does not look at the flag, so DPDK never sees it between its own ends. A device that does, as virtio
# has it, finds a packet that begins with a buffer to be written. DPDK 24.11.8 (Debian 13), tried by hand, does the same.
# Why it matters to vhost-pci: it would break every queue of such a driver: lib/virtq/virtq.c reads the tables of transmit queues regardless.
#
# Needs apt with Debian 12's lists, 1 GB of space in TMPDIR and about a minute. Installs nothing on this machine.
set -eu

DPDK=22.11.11-0+deb12u1
PINNED="dpdk-dev=$DPDK librte-net-virtio23=$DPDK librte-bus-vdev23=$DPDK librte-mempool-ring23=$DPDK python3.11=3.11.2-6+deb12u9"

tmp=$(mktemp -d)
back='' testpmd=''
# shellcheck disable=SC2086
trap 'kill $back $testpmd 2>/dev/null || true; wait; rm -rf "$tmp"' EXIT INT TERM
root=$tmp/root
lib=usr/lib/x86_64-linux-gnu

# ---- the packages, with all that they need, into a folder of their own ---------------------------------------------
mkdir -p "$tmp/apt/archives/partial" "$tmp/apt/state" "$root" "$tmp/run"
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
rm -rf "$tmp/apt/archives"

ld=$root/lib64/ld-linux-x86-64.so.2
libs=$root/$lib:$root/lib/x86_64-linux-gnu

# ---- a back-end that only looks ----------------------------------------------------------------------------------------
cat >"$tmp/back.py" <<'END'
import mmap, select, socket, struct, sys, time

FEATURES = 1 << 32 | 1 << 30 | 1 << 15 | int(sys.argv[2], 0)		# VERSION_1, protocol features, MRG_RXBUF
PACKED = FEATURES >> 34 & 1
NEXT, WRITE, INDIRECT, AVAIL, TX, SHOWN = 1, 2, 4, 1 << 7, 1, 5
regions, size, addr, enabled = [], 0, None, False


def read(at, n, user):
    for gpa, length, uva, m in regions:
        first = uva if user else gpa
        if first <= at and at + n <= first + length:
            return m[at - first:at - first + n]
    raise LookupError(hex(at))


def descriptors(at, n, user):
    """Of (address, length, flags, next), whatever the ring: two numbers of 16 bits are the other way round."""
    for i in range(n):
        a, length, x, y = struct.unpack('<QIHH', read(at + 16 * i, 16, user))
        yield (a, length, y, x) if PACKED else (a, length, x, y)


def packets():
    """Of the first ones of the ring: lengths and flags of their pieces, once there are enough."""
    if not PACKED and struct.unpack('<H', read(addr[2] + 2, 2, True))[0] < SHOWN:
        return []
    d, found, i = list(descriptors(addr[0], size, True)), [], 0
    while len(found) < SHOWN:
        if PACKED and not d[i][2] & AVAIL:
            return []
        if d[i][2] & INDIRECT:
            pieces, i = list(descriptors(d[i][0], d[i][1] // 16, False)), i + 1
        else:
            pieces = [d[i]]
            while d[i][2] & NEXT:
                i += 1
                pieces.append(d[i])
            i += 1
        found.append(pieces)
    return found


s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen(1)
s.settimeout(30)
c = s.accept()[0]
end = time.monotonic() + 30
while time.monotonic() < end:
    if select.select([c], [], [], 0.2)[0]:
        head, fds, _, _ = socket.recv_fds(c, 12, 16)
        req, flags, n = struct.unpack('<III', head)
        body = c.recv(n, socket.MSG_WAITALL) if n else b''
        answer = {1: struct.pack('<Q', FEATURES), 11: body, 15: struct.pack('<Q', 1 << 3), 17: struct.pack('<Q', 1)}.get(req, bytes(8) if flags & 8 else b'')
        if req == 5:
            for i, fd in enumerate(fds):
                gpa, length, uva, off = struct.unpack('<QQQQ', body[8 + 32 * i:40 + 32 * i])
                regions.append((gpa, length, uva, mmap.mmap(fd, length, offset=off)))
        elif req in (8, 9, 18) and body[0] == TX:
            if req == 8:
                size = struct.unpack('<II', body)[1]
            elif req == 9:
                addr = struct.unpack('<IIQQQQ', body)[2:5]
            else:
                enabled = body[4]
        if answer:
            c.sendall(struct.pack('<III', req, 5, len(answer)) + answer)
    elif enabled:
        found = packets()
        if found:
            for n, pieces in enumerate(found):
                print('  packet %d: %s' % (n, ', '.join('%d B%s' % (length, ' WRITE' if flags & WRITE else '') for _, length, flags, _ in pieces)))
            break
END

# ---- run -------------------------------------------------------------------------------------------------------------
# It would load the drivers of this machine as well, if there are any: its copy looks for them in a folder that is not there.
sed -i 's|/dpdk/pmds-23\.0|/dpdk/pmds-none|' "$(readlink -f "$root/$lib/librte_eal.so.23")"
run() { # NAME, FEATURES, packed_vq=
	echo "$1:"
	rm -f "$tmp/sock"
	PYTHONHOME=$root/usr timeout 60 "$ld" --library-path "$libs" "$root/usr/bin/python3.11" -B "$tmp/back.py" "$tmp/sock" "$2" 2>>"$tmp/out" &
	back=$!
	n=0
	until [ -S "$tmp/sock" ]; do
		n=$((n + 1))
		[ $n -lt 100 ] || { cat "$tmp/out"; exit 1; }
		sleep 0.1
	done
	XDG_RUNTIME_DIR=$tmp/run timeout 60 "$ld" --library-path "$libs" "$root/usr/bin/dpdk-testpmd" -d librte_bus_vdev.so.23 -d librte_mempool_ring.so.23 \
		-d librte_net_virtio.so.23 -l 0,1 --no-pci --no-huge -m 128 --no-telemetry --no-shconf --single-file-segments \
		--vdev "net_virtio_user0,path=$tmp/sock,queues=1,packed_vq=$3,mrg_rxbuf=1" -- --forward-mode=txonly --auto-start --nb-cores=1 \
		--total-num-mbufs=4096 --txpkts=64,100,200 --tx-offloads=0x8000 --stats-period=600 >>"$tmp/out" 2>&1 </dev/null &
	testpmd=$!
	wait $back || true
	kill $testpmd 2>/dev/null || true
	wait $testpmd || true
	back='' testpmd=''
}
{
	run 'packed ring, tables' 0x410000000 1
	run 'packed ring, no tables' 0x400000000 1
	run 'split ring, tables' 0x10000000 0
} >"$tmp/seen"

cat >"$tmp/want" <<'END'
packed ring, tables:
  packet 0: 12 B WRITE, 64 B, 100 B, 200 B
  packet 1: 12 B WRITE, 64 B WRITE, 100 B, 200 B
  packet 2: 12 B WRITE, 64 B, 100 B WRITE, 200 B
  packet 3: 12 B WRITE, 64 B, 100 B, 200 B WRITE
  packet 4: 12 B WRITE, 64 B, 100 B, 200 B
packed ring, no tables:
  packet 0: 12 B, 64 B, 100 B, 200 B
  packet 1: 12 B, 64 B, 100 B, 200 B
  packet 2: 12 B, 64 B, 100 B, 200 B
  packet 3: 12 B, 64 B, 100 B, 200 B
  packet 4: 12 B, 64 B, 100 B, 200 B
split ring, tables:
  packet 0: 12 B, 64 B, 100 B, 200 B
  packet 1: 12 B, 64 B, 100 B, 200 B
  packet 2: 12 B, 64 B, 100 B, 200 B
  packet 3: 12 B, 64 B, 100 B, 200 B
  packet 4: 12 B, 64 B, 100 B, 200 B
END
echo "dpdk-testpmd $DPDK (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: transmitted headers and data are marked as device-writable in packed tables"
