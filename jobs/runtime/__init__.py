"""Shared by all commands: Ray, progress, metrics, image streams, formatting of values."""
