import json, time
import portlink, pytest
import vhostpci_vm as v
from test_fast import Fixture

def test_direct(new_lab):
    with new_lab() as lab:
        link = Fixture(lab, 'fast', 'ivshmem', 'system')
        link.ensure()
        def dev():
            d = link.daemon.ctl('show', portlink.LINK)['sides']['device']
            return {k: d.get(k) for k in ('kicks_direct', 'calls_direct', 'signals_forwarded', 'doorbells_used')}
        v.note('before %r' % dev())
        assert v.ping(link.driver, link.addr_device, 10, 0.1) == 0
        f, r = link.tcp('mib=16')
        assert f['bytes'] == r['bytes'] == 16 << 20
        a = dev()
        v.note('after %r' % a)
        assert a['calls_direct'] == 2
        t = link.driver.reset(); link.up_driver(); link.back('reset of the driver VM')
        v.note('after a reset of the driver VM %r' % dev())
        assert dev()['calls_direct'] == 2
