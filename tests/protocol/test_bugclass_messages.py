# SPDX-License-Identifier: BSD-3-Clause
"""The message classes of test_hostile_messages.py against links in fast and copy mode: the same offender, another link behind it."""
import struct

import pytest

import vu
from bugclass import Lab
from test_hostile_messages import (  # noqa: F401 (tests that run here again, with this file's fixture)
    start, test_bad_regions, test_cut_at_every_message, test_cut_off_anywhere, test_does_not_read_answers, test_features_not_offered,
    test_flood_of_fds, test_half_a_message_then_silence, test_notifiers_that_are_no_eventfds, test_queue_sizes, test_raw,
    test_reconnect_storm, test_region_fd_that_is_no_memory, test_ring_addresses_outside_memory, test_ring_at_the_end_of_memory,
    test_ring_index_out_of_range, test_surplus_fds, test_table_announces_other_than_it_holds)


@pytest.fixture(params=["fast", "copy"])
def guarded(make_daemon, request):
    lab = Lab(make_daemon(), request.param)
    before = lab.d.fds()
    yield lab.d
    lab.check()
    lab.d.wait(lambda: lab.d.fds() <= before)
    # And the link itself serves the next driver.
    lab.driver()
    lab.there_and_back(1)
    lab.close()


def test_dirty_log_too_small(guarded):
    with start(guarded) as f:
        if not f.offered >> vu.LOG_ALL & 1:
            assert guarded.show("ab")["mode"] == "fast"  # the device VM writes: nobody could log it
            return
        f.set_memory(vu.Memory())
        log = vu.os.memfd_create("log")
        vu.os.ftruncate(log, 4096)
        with pytest.raises((vu.Refused, vu.Gone)):
            f.tell(vu.SET_LOG_BASE, struct.pack("<QQ", 4096, 0), [log])
        vu.os.close(log)
