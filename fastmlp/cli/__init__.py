"""The command line, ``fastmlp``."""
