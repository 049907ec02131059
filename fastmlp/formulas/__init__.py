"""What a network computes with: activations, losses, optimizers, schedules, initial weights, each defined once."""
