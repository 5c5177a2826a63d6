"""`clvr evaluate` and `clvr calibrate`: CMC, comparisons and calibration of a run."""
