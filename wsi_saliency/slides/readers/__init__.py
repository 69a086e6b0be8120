"""One file a library that reads slides, and what they share."""
