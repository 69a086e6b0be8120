"""The journal of a run: how far it is, written now and then, so that the next run goes on where it ended.

It holds what was asked for, and what cannot be made again cheaply: how many patches are done, the rows that
wait to be blended or written, what was said of targets, drifts, seconds. It is a snapshot in the working
folder, and read with distrust: where it is damaged, or of another run, one line says so, and the slide is
done from the start.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from wsi_saliency.errors import OutputError, WsiSaliencyError
from wsi_saliency.files import writing
from wsi_saliency.heatmap.snapshot import DamagedSnapshotError, Snapshot, write_snapshot
from wsi_saliency.workflows.record import what_is_asked
from wsi_saliency.working import journal_of, persist, start_anew

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from wsi_saliency.heatmap.result import Result
    from wsi_saliency.heatmap.snapshot import State
    from wsi_saliency.settings import RunSettings
    from wsi_saliency.workflows.plan import Plan
    from wsi_saliency.workflows.record import Stopwatch

log = logging.getLogger(__name__)

SHORTEST, LONGEST = 5.0, 30.0
"""Seconds from one journal to the next: the shortest, and after which one is due whatever was done."""
SHARE = 0.02
"""Share of the patches after which a journal is due."""
COST = 0.01
"""Share of the time that journals may take."""
QUICK = 2.0
"""Seconds that a last journal may take on the way out: signals leave five for everything."""

Said = tuple[tuple[int, float | None], ...]
"""For each target, how many patches are positive, and the highest probability."""


class Growth(Protocol):
    """What grows while patches come."""

    done: int
    """Patches."""
    whole: bool
    """Whether nothing is half done: a signal may come at any time."""

    def facts(self) -> dict[str, Any]:
        """Return ``table``, the bytes of the table of patches, all written out, and ``said`` of targets."""
        ...

    def state(self) -> State:
        """Return the arrays."""
        ...


@dataclass(frozen=True)
class Saved:
    """What an earlier run says of itself.

    Parameters
    ----------
    arrays
        The state of its maps.
    done
        Patches that are done.
    step
        Patches that it read at a time.
    batch
        Patches that fitted into a pass.
    table
        Bytes of its table of patches.
    said
        What was said of the targets so far.
    drifts
        Of its maps, (x, y) in canvas pixels.
    clock
        What `Stopwatch.facts` were.
    """

    arrays: Snapshot
    done: int
    step: int
    batch: int
    table: int
    said: Said
    drifts: tuple[tuple[float, float], ...]
    clock: Mapping[str, Any]

    @classmethod
    def of(cls, arrays: Snapshot, plan: Plan, asked_batch: int | None) -> Saved:
        """Check the facts of a snapshot against a plan.

        Raises
        ------
        DamagedSnapshotError
            If they do not fit.
        """
        facts, patches = arrays.facts, len(plan.tiles)
        try:
            done = _whole(facts["done"], range(1, patches + 1))
            batch = _whole(facts["batch"], range(1, 2**31))
            step = _whole(facts["step"], range(1, 2**31))
            if facts["asked_batch"] != asked_batch:  # another one is wanted now, perhaps for want of memory
                batch = step = plan.explainer.batch
            return cls(
                arrays,
                done,
                step,
                batch,
                _whole(facts["table"], range(2**63)),
                _said(facts["said"], len(plan.explainer.targets), done),
                _drifts(facts["drifts"], len(plan.maps)),
                _clock(facts["clock"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DamagedSnapshotError("its facts do not fit") from error


def _whole(value: Any, within: range) -> int:
    if type(value) is not int or value not in within:
        raise ValueError("no such number")
    return value


def _real(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("no such number")
    return float(value)


def _said(facts: Any, targets: int, done: int) -> Said:
    said = tuple((_whole(positive, range(done + 1)), _real(highest)) for positive, highest in facts)
    if len(said) != targets:
        raise ValueError("other targets")
    return said


def _drifts(facts: Any, maps: int) -> tuple[tuple[float, float], ...]:
    drifts = tuple((_real(x), _real(y)) for x, y in facts)
    if len(drifts) != maps:
        raise ValueError("other maps")
    return drifts


def _clock(facts: Any) -> dict[str, Any]:
    return {
        "started": datetime.fromisoformat(facts["started"]),
        "total": _real(facts["total"]),
        "seconds": {str(name): _real(seconds) for name, seconds in facts["seconds"].items()},
        "resumed": _whole(facts["resumed"], range(2**31)),
    }


@dataclass
class Journal:
    """The journal of a run; `open` finds the one that an earlier run has left.

    Parameters
    ----------
    work
        Where the result grows.
    plan, settings
        What is done.
    clock
        Goes on with the seconds of the earlier run.
    asked
        What has to be the same in a run that goes on.
    writes
        Whether this run may be gone on with.
    saved
        What an earlier run has left.
    step
        Patches to read at a time: as many as the earlier run, for sums depend on it in the last bit.
    """

    work: Path
    plan: Plan
    settings: RunSettings
    clock: Stopwatch
    asked: Mapping[str, Any]
    writes: bool
    saved: Saved | None = None
    step: int = 0
    _done: int = 0  # at the last journal
    _last: float = field(default_factory=time.monotonic)
    _since: float = field(default_factory=time.time)  # when the last one was begun; that of files
    _cost: float = 0.0
    _got_further: bool = False

    @classmethod
    def open(
        cls,
        work: Path,
        plan: Plan,
        settings: RunSettings,
        clock: Stopwatch,
        before: Result | None,
        *,
        writes: bool,
    ) -> Journal:
        """Find the journal that an earlier run has left; one that does not fit goes, with what has grown."""
        journal = cls(work, plan, settings, clock, what_is_asked(plan, settings, before), writes)
        if not journal_of(work).exists():
            return journal
        try:
            found = Snapshot.read(journal_of(work))
            earlier = found.facts.get("asked")
            if earlier != journal.asked:
                journal.start_anew(f"it was of {_differences(earlier, journal.asked)}")
            else:
                journal.saved = Saved.of(found, plan, settings.batch)
        except DamagedSnapshotError as error:
            journal.start_anew(str(error))
        return journal

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Say what a failure leaves. What fails again at once, as nobody expects, is not gone on with."""
        if error is None or not journal_of(self.work).exists():
            return
        if isinstance(error, KeyboardInterrupt):  # whoever ends the program says it
            error.add_note(f"the same command goes on with {self._slide}")
            return
        unexpected = isinstance(error, Exception) and not isinstance(error, WsiSaliencyError)
        if unexpected and self.saved and not self._got_further:
            journal_of(self.work).unlink()
        else:
            log.warning("%s: %s kept; the next run goes on there", self._slide, self._how_far())

    def placed(self) -> Plan | None:
        """Return the plan with the drifts that the earlier run has measured, if there was one."""
        if self.saved is None:
            return None
        return replace(self.plan, drifts=dict(zip(self.plan.maps, self.saved.drifts, strict=True)))

    def start_anew(self, why: str) -> None:
        """Remove what the earlier run has left, and say so."""
        log.warning("%s: an unfinished run cannot be gone on with: %s; done from the start", self._slide, why)
        self.saved = None
        with writing(self.work):
            start_anew(self.work)

    def begin(self) -> int:
        """Return how many patches are done, when all that an earlier run has left is restored."""
        explainer, saved = self.plan.explainer, self.saved
        self.step = explainer.batch
        if saved is None:
            return 0
        self.step, explainer.batch = saved.step, min(explainer.batch, saved.batch)
        self.clock.go_on(saved.clock)
        self._done = saved.done
        log.warning("%s: goes on where an earlier run has ended, %s", self._slide, self._how_far())
        return saved.done

    @contextmanager
    def noting(self, growth: Growth, plan: Plan) -> Iterator[Callable[[], None]]:
        """Yield what writes a journal if it is due; one more is written when the block fails.

        That one only if nothing is half done, there is an earlier one, and it is quickly written.
        """
        try:
            yield lambda: self._note(growth, plan)
        except BaseException:
            written = self.writes and journal_of(self.work).exists()
            if written and growth.whole and growth.done > self._done and self._cost < QUICK:
                with suppress(OutputError):  # perhaps that is why the run ends
                    self._write(growth, plan)
            raise

    def _note(self, growth: Growth, plan: Plan) -> None:
        passed, new = time.monotonic() - self._last, growth.done - self._done
        due = passed >= LONGEST or new >= SHARE * len(plan.tiles) or growth.done == len(plan.tiles)
        if self.writes and new and due and passed >= max(SHORTEST, self._cost / COST):
            with self.clock.station("journal"):
                self._write(growth, plan)

    def _write(self, growth: Growth, plan: Plan) -> None:
        start, since = time.monotonic(), time.time()
        facts = growth.facts() | {
            "asked": self.asked,
            "done": growth.done,
            "step": self.step,
            "batch": plan.explainer.batch,
            "asked_batch": self.settings.batch,
            "drifts": [plan.drift(spec) for spec in plan.maps],
            "clock": self.clock.facts(),
        }
        with writing(self.work):
            persist(self.work, self._since)
        write_snapshot(journal_of(self.work), facts, growth.state())
        self._done, self._since, self._last, self._got_further = growth.done, since, time.monotonic(), True
        self._cost = self._last - start

    @property
    def _slide(self) -> str:
        return self.plan.slide.name

    def _how_far(self) -> str:
        return f"{self._done} of {len(self.plan.tiles)} patches"


def _differences(earlier: Any, now: Mapping[str, Any]) -> str:
    """Say in what two runs differ."""
    if not isinstance(earlier, dict):
        return "another version of the program"
    return "other " + ", ".join(name for name in now if earlier.get(name) != now[name])
