"""One file a verb of the command line: the stations of a slide's way put together."""
