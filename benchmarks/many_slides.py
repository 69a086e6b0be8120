"""How long many small slides take, beside the time that their patches are explained.

    python benchmarks/many_slides.py                     # 40 slides of 1 500 × 1 500 pixels
    python benchmarks/many_slides.py --slides 10 --side 3000
    python benchmarks/many_slides.py --jobs 2            # side by side: compare seconds, not the ratio

What is compared is the time from the first slide's beginning to the last one's end, without the start of the
process and the loading of the classifier, with the sum of the stations ``explain`` of all slides.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from made_slides import full, write_tiled  # noqa: E402


@click.command()
@click.option("--slides", default=40)
@click.option("--side", default=1500, help="Pixels.")
@click.option("--device", default="auto")
@click.option("--jobs", default=1, help="Slides side by side.")
def main(slides: int, side: int, device: str, jobs: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "slides").mkdir()
        for i in range(slides):
            write_tiled(folder / "slides" / f"{i:03}.tif", side, full, seed=i)
        command = [sys.executable, str(ROOT / "cli.py"), "run", str(folder / "slides")]
        subprocess.run(
            [*command, "-o", str(folder / "out"), "--model", "demo", "--device", device, "--jobs", str(jobs)],
            check=True,
            capture_output=True,
        )
        records = [json.loads(path.read_text()) for path in sorted((folder / "out").glob("*/run.json"))]
    first = min(datetime.fromisoformat(record["started"]).timestamp() for record in records)
    ends = [
        datetime.fromisoformat(record["started"]).timestamp() + record["seconds"]["total"]
        for record in records
    ]
    stations: dict[str, float] = {}
    for record in records:
        for station, seconds in record["seconds"].items():
            stations[station] = stations.get(station, 0.0) + seconds
    passed = max(ends) - first
    print({station: round(seconds, 1) for station, seconds in stations.items()})
    print(f"{len(records)} slides in {passed:.1f} s, {passed / stations['explain']:.3f} of explaining")


if __name__ == "__main__":
    main()
