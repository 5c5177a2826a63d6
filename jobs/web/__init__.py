"""The page in a browser: `clvr serve`, its server, its guard, and in `static/` what browsers load."""
