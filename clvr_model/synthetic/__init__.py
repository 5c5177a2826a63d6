"""A synthetic archive of drawn, labelled vehicle crops, determined by its spec."""
