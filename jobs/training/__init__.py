"""What `clvr train` is made of: a training planned, run, told and resumed."""
