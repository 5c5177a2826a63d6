"""`clvr evaluate` and `clvr calibrate`: metrics, comparisons and calibrations of runs."""
