"""Crops as they lie in the object store: listed, described, labelled and compared."""
