"""Whether this machine, a backend or a gradient is right; whatever of it must run first imports Python's own alone."""
