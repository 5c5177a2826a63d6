"""Exact L2: nearest neighbours, and counts of the gallery images that rank ahead."""
