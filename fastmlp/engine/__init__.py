"""Training and asking, whatever the backend: from checked arrays to steps, epochs, figures and checkpoints."""
