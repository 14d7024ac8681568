# SPDX-License-Identifier: BSD-3-Clause
"""A port link in any mode on any attachment, with a scripted device side: what tests share that hold for all of them."""
import contextlib

import portclient as pc

MODES = ["fast", "copy"]
ATTACHMENTS = ["local", "shmem", "ivshmem"]
ALL = [(m, a) for m in MODES for a in ATTACHMENTS]
IDS = [f"{m}-{a}" for m, a in ALL]


class PortLab:
    def __init__(self, d, mode, attachment, name="ab", driver="a", device="b", vmm=pc.Qmp, buses=("rp0", "rp1"), **more):
        self.d, self.mode, self.attachment, self.name = d, mode, attachment, name
        keys = {"Link_Mode": mode}
        if mode == "copy":
            keys["Device_PoolSize"] = "4M"
        if attachment == "shmem":
            keys["Device_ApertureSize"] = "8G"
        self.qmp = None
        if attachment == "ivshmem" and mode == "fast":
            path = str(d.tmp / f"{name}.qmp")
            self.qmp = vmm(path, buses)
            keys.update(Device_QMP=path, Device_HotplugBus=" ".join(buses))
        d.link(name, driver=driver, device=device, Device_Endpoint="port", Device_Attachment=attachment, **keys, **more)

    def drv(self):
        return self.d.sock(self.name, "driver")

    def dev(self):
        return self.d.sock(self.name, "device")

    def connect(self):
        p = {"local": pc.Local, "shmem": pc.Shmem, "ivshmem": pc.Ivshmem}[self.attachment](self.dev())
        p.vmm = self.qmp
        return p

    @contextlib.contextmanager
    def port(self):
        """Attached, for as long as that lasts."""
        with self.connect() as p:
            assert p.attach() == pc.OK
            yield p

    def close(self):
        if self.qmp:
            self.qmp.close()


def started(p):
    return p.wait(lambda s: s.up and all(q.flags & pc.STARTED for q in s.queues))
