"""What `clvr doctor` is made of: its checks of this machine, of Ray and of the rest of a set-up."""
