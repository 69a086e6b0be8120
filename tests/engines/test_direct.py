from __future__ import annotations

from pathlib import Path

from wsi_saliency.engines.direct import DirectEngine
from wsi_saliency.settings import RunSettings
from wsi_saliency.workflows import batch
from wsi_saliency.workflows.jobs import Job, Outcome


def test_one_classifier_explains_all_slides_on_the_first_device(tmp_path, monkeypatch):
    made = []

    class Work:
        def __init__(self, out, settings, overwrite, wait, progress):
            made.append((out, settings.device, overwrite, wait, progress))

        def __call__(self, job):
            return Outcome(job, failure=f"{job.slide}: done")

    monkeypatch.setattr(batch, "SlideWork", Work)
    jobs = [Job(Path(f"{name}.svs"), Path(name)) for name in "ab"]
    with DirectEngine(tmp_path, overwrite=True, wait=False) as engine:
        outcomes = list(engine.run(jobs, RunSettings(device="cpu, cuda:1")))
    assert outcomes == [Outcome(job, failure=f"{job.slide}: done") for job in jobs]
    assert made == [(tmp_path, "cpu", True, False, False)]
