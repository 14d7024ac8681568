from test_grant_viommu import *
def test_x(shmem):
    lab=shmem
    with lab.nic() as nic, lab.port() as p:
        up(p, nic)
        page = free_page(nic)
        nic.silent = True
        for i in range(64):
            assert p.command(MAP, IOVA + (page + i) * PAGE, 1, READ) == pc.OK and p.state().answer[4] == 0
        assert p.command(MAP, IOVA + (page + 64) * PAGE, 1, READ) == LIMIT
        gen = p.state().regions_generation
        nic.silent = False
        s = wait(p, nic, lambda s: s.regions_generation != gen)
        want(p, nic, IOVA + (page + 64) * PAGE, 1)
        assert p.command(UNMAP, IOVA + page * PAGE, 65 * PAGE) == pc.OK
        try:
            s = p.wait(lambda s: not covers(s, IOVA + page * PAGE, 1))
            print(s.regions, s.reason)
        finally:
            print(lab.d.log()[-4000:], lab.grant())
            assert 0
