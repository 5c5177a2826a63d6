"""`clvr serve`: the search page and its HTTP API."""
