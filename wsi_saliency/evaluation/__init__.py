"""Judging maps: are they faithful to the classifier, smooth, stable, and where they should be."""
