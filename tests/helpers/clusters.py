"""A cluster that says what it is told to, at once and in order."""

from __future__ import annotations

from dataclasses import dataclass, field

from wsi_saliency.engines.messages import Done
from wsi_saliency.workflows.jobs import Outcome


@dataclass
class StagedCluster:
    """Says of each slide what it is told to; of others that they are done.

    ``silent``: so often nothing at first. ``at_once``: of so many slides at a time.
    """

    told: dict = field(default_factory=dict)
    silent: int = 0
    at_once: int = 1000
    errands: list = field(default_factory=list)
    signs_seen: list = field(default_factory=list)
    forgotten: int = 0
    most: int = 0
    closed: bool = False
    _tasks: dict = field(default_factory=dict)

    def machines(self):
        return [{"CPU": 1.0, "GPU": 1.0}]

    def submit(self, errand, job, cpus, gpus):
        self.errands.append(errand)
        self.signs_seen.append(errand.sign.exists())
        self._tasks[len(self.errands)] = (errand, job)
        self.most = max(self.most, len(self._tasks))
        return len(self.errands)

    def heard(self, seconds):
        if self.silent:
            self.silent -= 1
            return
        for task, (errand, job) in list(self._tasks.items())[: self.at_once]:
            told = self.told.get(job.slide.stem, [Done(Outcome(job, failure=f"{job.slide}: done"))])
            for message in told(errand, job) if callable(told) else told:
                yield task, message

    def forget(self, task):
        del self._tasks[task]
        self.forgotten += 1

    def close(self):
        self.closed = True
