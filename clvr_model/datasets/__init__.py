"""Readers of labelled vehicle images, and the synthetic archive."""
