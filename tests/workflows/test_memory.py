from __future__ import annotations

import platform
import sys

import pytest

from wsi_saliency.workflows.memory import give_back


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library gives nothing back")
def test_freed_memory_goes_back_to_the_system():
    pieces = [bytearray(b"x" * 2**16) for _ in range(2000)]
    last = pieces[-1]  # above the others, so that the heap does not shrink by itself
    del pieces
    before = resident()
    give_back()
    assert before - resident() > 2**26
    assert len(last) == 2**16


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_nothing_happens_elsewhere(monkeypatch, system):
    monkeypatch.setattr(sys, "platform", system)
    give_back()
