"""What `clvr sweep` is made of: thousands of probes, part by part, and their page."""
