"""`clvr load`, `promote`, `rollback`, `generations`, `retire`, `verify`, `forget` and `retain`."""
