"""`clvr search`: search the live generation by one or several images of a vehicle."""
