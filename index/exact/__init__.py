"""Exact L2: nearest neighbours, and counts of the gallery images that rank ahead."""

NO_ID = -1
"""Pads the ids of results that have fewer rows than were asked for, at infinite distance."""
