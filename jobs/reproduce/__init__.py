"""`clvr reproduce`: the paper's Table 1 and Figures 4 to 6 on a dataset, with all three methods."""
