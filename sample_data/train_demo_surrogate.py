"""Train and measure the surrogate that comes with the ``demo`` classifier, on drawn tissue.

Sections of other seeds than the sample slide's; those to measure on have seeds of their own again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tqdm import tqdm
from train_demo import sample_patches

from wsi_saliency.models.loading import load_classifier
from wsi_saliency.saliency.surrogate import Surrogate
from wsi_saliency.saliency.surrogate_training import score_surrogate, train_surrogate
from wsi_saliency.workflows.train import PatchBatches, report

SURROGATE = Path(__file__).parents[1] / "wsi_saliency" / "models" / "demo_surrogate.safetensors"
TRAIN_SEEDS, HELD_OUT_SEEDS, EVALUATION_SEEDS = range(3000, 3024), range(6000, 6004), range(6004, 6012)
PER_SECTION = 50


def main() -> None:
    """Train, save and measure."""
    parser = argparse.ArgumentParser(description="Train the demo classifier's surrogate on drawn tissue.")
    parser.add_argument("--evaluate", action="store_true", help="only measure the surrogate that is there")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1, help="decides the order of the patches")
    parser.add_argument("--threads", type=int, default=2, help="results depend on it in the last digits")
    parser.add_argument("--surrogate", type=Path, default=SURROGATE, help="file to write, or to measure")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.evaluate:
        evaluate(options.surrogate, options.batch)
    else:
        train(options.surrogate, options.epochs, options.batch, options.seed)


def train(file: Path, epochs: int, size: int, seed: int) -> None:
    """Train on sections of some seeds and save with the scores on others."""
    classifier = load_classifier("demo")
    classifier.module.to(memory_format=torch.channels_last)
    batches = PatchBatches(sample_patches(TRAIN_SEEDS, PER_SECTION)[0], classifier, size, seed)
    with tqdm(total=epochs * len(batches), unit="step", mininterval=5) as bar:
        surrogate = train_surrogate(
            classifier.module,
            batches,
            epochs,
            held_out=PatchBatches(sample_patches(HELD_OUT_SEEDS, PER_SECTION)[0], classifier, size),
            output=classifier.output,
            settings={"patches": len(batches.patches), "batch": size, "seed": seed, "drawn": True},
            on_step=lambda step: bar.update(),
        )
    surrogate.save(file)
    _print(surrogate)


def evaluate(file: Path, size: int) -> None:
    """Score the saved surrogate on sections it has not seen, with the sharper predictions apart."""
    classifier = load_classifier("demo")
    patches = PatchBatches(sample_patches(EVALUATION_SEEDS, PER_SECTION)[0], classifier, size)
    surrogate = Surrogate.load(file)
    scores = score_surrogate(surrogate, classifier.module, patches, classifier.output)
    _print(Surrogate(surrogate.model_hash, surrogate.layers, surrogate.settings, scores))


def _print(surrogate: Surrogate) -> None:
    for label, text in report(surrogate):
        print(f"{label:<14}{text}")


if __name__ == "__main__":
    main()
