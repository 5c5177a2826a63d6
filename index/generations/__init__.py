"""The life of a generation: load, gate, promotion, increments, erasure."""
