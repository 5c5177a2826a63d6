"""`clvr compare-models`: accuracy against cost, for models, feature transforms and compressions."""
