"""The verbs: each parses and prints; what it does is in a module of jobs."""
