"""`clvr drift`: how the crops of each camera change from week to week."""
