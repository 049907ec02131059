"""Whether this machine, or a gradient, is right: the self-test of a backend and checks against differences."""
