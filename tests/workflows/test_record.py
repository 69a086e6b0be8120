from __future__ import annotations

import time
from datetime import datetime

import pytest

from wsi_saliency.workflows.record import Stopwatch


def test_a_stopwatch_adds_up_what_is_spent_at_each_station():
    clock = Stopwatch()
    for _ in range(2):
        with clock.station("slow"):
            time.sleep(0.02)
    with pytest.raises(KeyError), clock.station("failing"):
        raise KeyError
    assert clock.seconds.keys() == {"slow", "failing"}
    assert 0.04 <= clock.seconds["slow"] <= clock.total


def test_iterating_counts_the_wait_and_not_the_work():
    def items():
        for i in range(3):
            time.sleep(0.01)
            yield i

    clock, seen = Stopwatch(), []
    for i in clock.iterate("read", items()):
        seen.append(i)
        time.sleep(0.05)
    assert seen == [0, 1, 2]
    assert 0.03 <= clock.seconds["read"] <= clock.total - 0.15


def test_a_watch_that_goes_on_has_the_time_of_both_runs():
    earlier, now = Stopwatch(), Stopwatch()
    with earlier.station("read"):
        pass
    with now.station("read"), now.station("explain"):
        pass
    facts = earlier.facts() | {"total": 100.0, "seconds": {"read": 60.0, "tiff": 7.0}, "resumed": 2}
    seconds, started = dict(now.seconds), datetime.fromisoformat(facts["started"])
    now.go_on(facts | {"started": started})
    assert started == earlier.started == now.started
    assert now.resumed == 3
    assert now.seconds == seconds | {"read": seconds["read"] + 60.0, "tiff": 7.0}
    assert 100 <= now.total < 160
