# SPDX-License-Identifier: BSD-3-Clause
"""A file system whose server stops answering: FUSE, spoken by hand. Needs root and /dev/fuse."""
import ctypes
import os
import signal
import struct
import tempfile

libc = ctypes.CDLL(None, use_errno=True)
LOOKUP, GETATTR, OPEN, INIT = 1, 3, 14, 26
SIZE = 16 << 20


def attr(node):
    return struct.pack("<6Q10I", node, SIZE, 0, 0, 0, 0, 0, 0, 0, 0o40755 if node == 1 else 0o100600, 1, 0, 0, 0, 4096, 0)


class SilentFs:
    """One file. Once it is open, whoever asks anything about it waits until close()."""

    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="vpfuse")
        self.dev = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self.dev},rootmode=40000,user_id=0,group_id=0".encode()
        if libc.mount(b"vhost-pci-test", self.dir.encode(), b"fuse", 0, options):
            err = OSError(ctypes.get_errno(), "FUSE cannot be mounted here")
            os.close(self.dev)
            os.rmdir(self.dir)
            raise err
        # A process of its own, which ends with this one: who has both ends would wait for itself when it is killed.
        self.server = os.fork()
        if not self.server:
            libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            os.dup2(self.dev, 3)
            os.closerange(4, 4096)
            self.dev = 3
            try:
                self.serve()
                while True:
                    signal.pause()
            finally:
                os._exit(1)
        os.close(self.dev)
        self.fd = os.open(self.dir + "/memory", os.O_RDWR | os.O_CLOEXEC)

    def serve(self):
        answers = {
            INIT: struct.pack("<IIIIHHIIHH8I", 7, 31, 0, 0, 16, 12, 4096, 1, 1, 0, *[0] * 8),
            LOOKUP: struct.pack("<QQQQII", 2, 1, 0, 0, 0, 0) + attr(2),
            OPEN: struct.pack("<QII", 7, 0, 0),
        }
        op = None
        while op != OPEN:
            _, op, unique, node = struct.unpack_from("<IIQQ", os.read(self.dev, 1 << 17))
            body = answers.get(op, struct.pack("<QII", 0, 0, 0) + attr(node))
            os.write(self.dev, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)

    def close(self):
        """Everybody who waits is let go, with an error."""
        libc.umount2(self.dir.encode(), 1 | 2)  # MNT_FORCE | MNT_DETACH
        os.kill(self.server, signal.SIGKILL)
        os.waitpid(self.server, 0)
        try:
            os.close(self.fd)
        except OSError:
            pass
        os.rmdir(self.dir)
