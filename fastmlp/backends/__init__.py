"""Where a network runs: one interface, and a folder for each kind of machine; README.md says how to read it."""
