"""Readers of labelled vehicle pictures, and the synthetic archive."""
