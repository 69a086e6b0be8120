"""From a model URI to a checked classifier; a source is imported when it is used."""
