"""Synthetic vehicles: a drawn archive of labelled crops, which follows from its spec alone."""
