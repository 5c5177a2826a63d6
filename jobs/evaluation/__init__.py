"""What `clvr evaluate` and `clvr calibrate` are made of: labelled runs, ranked, counted and shown."""
