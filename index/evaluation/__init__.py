"""Protocols and metrics of vehicle re-identification."""
