"""Explaining: layers, smoothing, attribution. Nothing here opens a slide."""
