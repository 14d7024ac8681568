#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# QEMU tells a vhost-user back-end that its device was reset (SET_STATUS 0) when the VM is only paused, and before it asks where the rings
# stand: `stop` and a reset of the machine are the same messages. The guest's device goes on to have DRIVER_OK all the while.
#
#   software   QEMU 7.2 (Debian 1:7.2+dfsg-7+deb12u18+b3), machine q35, emulated; SeaBIOS 1.16.2 (Debian 1.16.2-1), which drives the disk
#   input      valid: vhost-user-blk with four queues, a back-end that has the protocol feature STATUS; QMP "stop", "cont", "system_reset"
#   expected   the status is the one that virtio defines (vhost-user, SET_STATUS): 0 when the driver resets the device, and nothing when the
#              processors stand still. SET_VRING_ENABLE 1 is for rings that the driver has set up: SeaBIOS uses one of the four
#   seen       `stop`: SET_STATUS 0, SET_VRING_ENABLE 0 of all four, GET_VRING_BASE of the one. `cont` sets the device up anew from SET_FEATURES,
#              with FEATURES_OK before ACKNOWLEDGE and DRIVER, and enables four rings, three of which have no size, address or kick
#   and        query-status and x-query-virtio-status show a guest that has reset nothing. Where the ring goes on after `cont` is what
#              GET_VRING_BASE was answered: a back-end that forgets its index at status 0, as virtio has it, starts again at 0
#
# A live migration ends on the source with the same pause. QEMU 11.1.3 (Debian), tried by hand, sends status 0 for a pause, too, but after
# GET_VRING_BASE, and it enables the three rings as well.
# Why it matters to vhost-pci: status 0 ends nothing in lib/vhostuser; rings end by GET_VRING_BASE, and a device VM that is paused keeps what
# it serves.
#
# Needs apt with Debian 12's lists, 1 GB of space in TMPDIR and about half a minute. Installs nothing on this machine.
set -eu

QEMU=1:7.2+dfsg-7+deb12u18+b3
PINNED="qemu-system-x86=$QEMU qemu-system-common=$QEMU seabios=1.16.2-1 python3.11=3.11.2-6+deb12u9"

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
rm -rf "$tmp/apt/archives"

ld=$root/lib64/ld-linux-x86-64.so.2
libs=$root/$lib:$root/lib/x86_64-linux-gnu:$root/$lib/pulseaudio

# ---- a back-end that serves nothing, and says what it is told --------------------------------------------------------
cat >"$tmp/back.py" <<'END'
import json, os, select, socket, struct, subprocess, sys, time

TMP, SYSTEM = sys.argv[1], sys.argv[2:]
FEATURES = 1 << 32 | 1 << 30 | 1 << 12 | 1 << 6 | 1 << 2			# VERSION_1, protocol features; MQ, BLK_SIZE, SEG_MAX
PROTOCOL = 1 << 16 | 1 << 9 | 1 << 3 | 1						# STATUS, CONFIG, REPLY_ACK, MQ
CONFIG = struct.pack('<QIIHBBIBBHIBBH', 2048, 0, 126, 0, 0, 0, 512, 0, 0, 0, 0, 0, 0, 4).ljust(60, b'\0')
NAMES = {2: 'SET_FEATURES', 8: 'SET_VRING_NUM', 9: 'SET_VRING_ADDR', 10: 'SET_VRING_BASE', 11: 'GET_VRING_BASE', 12: 'SET_VRING_KICK',
         18: 'SET_VRING_ENABLE', 39: 'SET_STATUS'}
STATUS = {1: 'ACKNOWLEDGE', 2: 'DRIVER', 8: 'FEATURES_OK', 4: 'DRIVER_OK'}
base, status, log = 0, 0, []


def message():
    """One of QEMU's."""
    global status
    req, flags, size = struct.unpack('<III', back.recv(12, socket.MSG_WAITALL))
    body = back.recv(size, socket.MSG_WAITALL) if size else b''
    what = NAMES.get(req)
    if req == 39:
        status, = struct.unpack('<Q', body)
        what += ' ' + (' '.join(n for b, n in STATUS.items() if status & b) or '0')
    elif req in (10, 18):
        what += ' %d of ring %d' % struct.unpack('<II', body)[::-1]
    elif req == 11:
        body = body[:4] + struct.pack('<I', base)
        what += ' of ring %d, answered %d' % (body[0], base)
    elif req in (8, 9, 12):
        what += ' of ring %d' % body[0]
    if what:
        log.append(what)
    answer = {1: struct.pack('<Q', FEATURES), 11: body, 15: struct.pack('<Q', PROTOCOL), 17: struct.pack('<Q', 4), 24: body[:12] + CONFIG[:size - 12],
              40: struct.pack('<Q', status)}.get(req, bytes(8) if flags & 8 else None)
    if answer is not None:
        back.sendall(struct.pack('<III', req, 5, len(answer)) + answer)


def serve(until=lambda: False, seconds=3):
    """Until it is so, or nothing has come for so long."""
    while not until() and select.select([back], [], [], seconds)[0]:
        message()


def execute(command, **args):
    """QEMU does not answer before its back-end has."""
    qmp.sendall(json.dumps({'execute': command, 'arguments': args}).encode() + b'\n')
    answer = b''
    while True:
        if back in select.select([back, qmp], [], [], 30)[0]:
            message()
            continue
        answer += qmp.recv(65536)
        for line in answer.split(b'\n')[:-1]:
            if b'"return"' in line:
                return json.loads(line)['return']
        answer = answer.rpartition(b'\n')[2]


s = socket.socket(socket.AF_UNIX)
s.bind(os.path.join(TMP, 'vhost'))
s.listen(1)
s.settimeout(30)
vm = subprocess.Popen(SYSTEM + [
    '-M', 'q35,memory-backend=m', '-accel', 'tcg', '-m', '64', '-object', 'memory-backend-memfd,id=m,size=64M,share=on', '-nodefaults',
    '-no-user-config', '-display', 'none', '-chardev', 'socket,id=c,path=' + os.path.join(TMP, 'vhost'),
    '-device', 'vhost-user-blk-pci,chardev=c,num-queues=4,id=disk', '-qmp', 'unix:%s,server=on,wait=off' % os.path.join(TMP, 'qmp')])
try:
    back = s.accept()[0]
    serve(lambda: status & 4, 30)			# SeaBIOS has its disk
    serve()
    qmp = socket.socket(socket.AF_UNIX)
    qmp.connect(os.path.join(TMP, 'qmp'))
    execute('qmp_capabilities')
    path = [d['path'] for d in execute('x-query-virtio')][0]

    def does(command, show=False, least=0):
        log.clear()
        execute(command)
        serve(lambda: least and len(log) >= least, 30 if least else 1)
        if show:
            print('%s:' % command)
            for line in log:
                print('  ' + line)
            print('  the VM is %s, the guest\'s device has: %s' % (
                execute('query-status')['status'],
                ' '.join(sorted(t.split(':')[0].replace('VIRTIO_CONFIG_S_', '') for t in execute('x-query-virtio-status', path=path)['status']['statuses']))))
        return list(log)

    base = 7
    pause = does('stop', True)
    does('cont', True)
    base = 0
    does('stop')
    print('cont, when GET_VRING_BASE was answered 0: %s' % ', '.join(m for m in does('cont') if m.startswith('SET_VRING_BASE')))
    base = 7
    reset = does('system_reset', least=len(pause))[:len(pause)]
    print('system_reset begins with %s' % ('the same messages as stop' if reset == pause else ', '.join(reset)))
finally:
    vm.kill()
    vm.wait()
END

# ---- run -------------------------------------------------------------------------------------------------------------
export QEMU_MODULE_DIR="$root/$lib/qemu"
PYTHONHOME=$root/usr timeout 120 "$ld" --library-path "$libs" "$root/usr/bin/python3.11" -B "$tmp/back.py" "$tmp" \
	"$ld" --library-path "$libs" "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/seabios" -L "$root/usr/share/qemu" \
	>"$tmp/seen" 2>"$tmp/out" || true

cat >"$tmp/want" <<'END'
stop:
  SET_STATUS 0
  SET_VRING_ENABLE 0 of ring 0
  SET_VRING_ENABLE 0 of ring 1
  SET_VRING_ENABLE 0 of ring 2
  SET_VRING_ENABLE 0 of ring 3
  GET_VRING_BASE of ring 0, answered 7
  the VM is paused, the guest's device has: ACKNOWLEDGE DRIVER DRIVER_OK FEATURES_OK
cont:
  SET_FEATURES
  SET_STATUS FEATURES_OK
  SET_FEATURES
  SET_VRING_NUM of ring 0
  SET_VRING_BASE 7 of ring 0
  SET_VRING_ADDR of ring 0
  SET_VRING_KICK of ring 0
  SET_VRING_ENABLE 1 of ring 0
  SET_VRING_ENABLE 1 of ring 1
  SET_VRING_ENABLE 1 of ring 2
  SET_VRING_ENABLE 1 of ring 3
  SET_STATUS ACKNOWLEDGE DRIVER FEATURES_OK DRIVER_OK
  the VM is running, the guest's device has: ACKNOWLEDGE DRIVER DRIVER_OK FEATURES_OK
cont, when GET_VRING_BASE was answered 0: SET_VRING_BASE 0 of ring 0
system_reset begins with the same messages as stop
END
echo "QEMU ${QEMU#*:} (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: a pause is told as a reset of the device"
