"""The local page on which slides and their maps are looked at."""
