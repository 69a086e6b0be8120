"""Work for worker processes that goes wrong as a slide's name says; and what a process tells of itself.

The functions are found by their name in the worker, which imports everything anew.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path

from wsi_saliency.engines import worker
from wsi_saliency.engines.messages import Advanced, Begun, Loaded, Loading
from wsi_saliency.errors import ModelError, SlideError
from wsi_saliency.files import growing, locked
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.workflows.ahead import LookAhead
from wsi_saliency.workflows.jobs import Job, Outcome

log = logging.getLogger("wsi_saliency.tests")


def jobs_for(*names):
    return [Job(Path(f"{name}.svs"), Path(name)) for name in names]


def note(order, text):
    """Add a line to what all workers of a test have noted."""
    with (order.out.parent / "notes").open("a") as file:
        file.write(f"{text}\n")


def notes(folder):
    return (folder / "notes").read_text().splitlines()


def staged(order, send):
    """Return work that is what the slide's name says."""
    note(order, f"started {order.settings.device}")
    log.warning("of the classifier")
    send(Loading())
    send(Loaded(2))

    def work(job):
        send(Begun(job.slide.name, 2, "patch"))
        send(Advanced(2))
        note(order, f"{job.slide.stem} {order.settings.device} {os.getpid()}")
        log.warning("%s: of the slide", job.slide)
        try:
            _DEEDS.get(job.slide.stem.partition("-")[0], lambda target: None)(order.out / job.name)
        except ValueError:
            return Outcome(job, failure=f"{job.slide}: failed", trace=traceback.format_exc())
        return Outcome(job, failure=f"{job.slide}: done")

    return work


def content(order, send):
    """Return staged work of which all comes well."""
    work = staged(order, send)
    return lambda job: replace(work(job), failure=None)


def opening(order, send):
    """Return work that opens slides, files and URLs, and says how large they are; it looks ahead, too."""
    send(Loading())
    send(Loaded(1))

    def work(job):
        try:
            with open_slide(job.slide, cache=order.settings) as slide:
                return Outcome(job, failure=f"{slide.shown}: {slide.source.size} bytes")
        except SlideError as error:
            return Outcome(job, failure=str(error))

    def look_ahead(job, done):
        LookAhead(job, order.settings, None, done)

    work.look_ahead = look_ahead
    return work


def watchful(order, send):
    """Return staged work that also looks ahead: whatever a slide is, it is while it is looked at, too.

    A slide ``a-b`` is at work until ``b`` is looked at.
    """
    work = staged(order, send)

    def look_ahead(job, done):
        def look():
            note(order, f"looks {job.slide.stem}")
            if job.slide.stem == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            note(order, f"looked {job.slide.stem}")
            done()

        threading.Thread(target=look, daemon=True).start()

    def waiting(job):
        awaited = job.slide.stem.partition("-")[2]
        while awaited and not any(line.startswith(f"looks {awaited}") for line in notes(order.out.parent)):
            time.sleep(0.01)
        return work(job)

    waiting.look_ahead = look_ahead
    return waiting


def measured(order, send):
    """Return real work that notes, after each slide, the threads, handles and memory (MB) of the process."""
    real = worker.slide_work(order, send)

    def work(job):
        outcome = real(job)
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        handles = len(os.listdir("/proc/self/fd"))
        note(order, f"{status['Threads'].strip()} {handles} {int(status['VmRSS'].split()[0]) // 1024}")
        return outcome

    work.look_ahead = real.look_ahead
    return work


def seeing_gpus(order, send):
    """Note which GPUs a worker sees, then be staged."""
    note(order, f"sees {os.environ['CUDA_VISIBLE_DEVICES']} as {order.settings.device}")
    return staged(order, send)


def unable(order, send):
    """Have no classifier."""
    raise ModelError("no such classifier")


def dying(order, send):
    """Die while the classifier is loaded."""
    send(Loading())
    os._exit(3)


def _hang(target):
    with locked(target), growing(target):
        time.sleep(600)


def _hang_deaf(target):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _hang(target)


def _hang_for_ever(target):
    worker.TIDYING = 600.0  # does not even end by itself
    _hang_deaf(target)


def _wait_for_b(target):
    """Be done when another slide is at work, so that there have to be two workers."""
    while not any(line.startswith("b ") for line in notes(target.parents[1])):
        time.sleep(0.01)


def _hold_until_a_kill(target):
    """Hold a working folder until the test says that it has killed something; then be quick."""
    with locked(target), growing(target):
        while not (target.parents[1] / "killed").exists():
            time.sleep(0.01)
        raise ValueError("was there when something was killed")


def _killed(target):
    with locked(target), growing(target):
        os.kill(os.getpid(), signal.SIGKILL)


def _broken(target):
    raise ValueError(f"what is wrong in {Path(target).name}")


def _killed_with_a_semaphore(target):
    kept = multiprocessing.get_context("spawn").Lock()
    assert kept
    os.kill(os.getpid(), signal.SIGKILL)


_DEEDS = {
    "semaphore": _killed_with_a_semaphore,
    "segfault": lambda target: ctypes.string_at(0),
    "killed": _killed,
    "exits": lambda target: os._exit(7),
    "terminated": lambda target: signal.raise_signal(signal.SIGTERM),
    "hangs": _hang,
    "deaf": _hang_deaf,
    "endless": _hang_for_ever,
    "waits": _wait_for_b,
    "holds": _hold_until_a_kill,
    "broken": _broken,
}
