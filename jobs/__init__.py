"""The thin adapter onto Ray and the command line."""
