"""Building on many machines, with Ray; no stage imports it."""
