"""Laying back: stitching, placement, pyramids and what other programs read. Nothing here imports torch."""
