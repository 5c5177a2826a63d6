"""Readers of labelled vehicle images."""
