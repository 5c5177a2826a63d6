"""`clvr fit-transform`: fit a feature transform to the crops of runs, on Ray."""
