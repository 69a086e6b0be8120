"""Reading: slides, tissue, blocks. Nothing here imports torch."""
