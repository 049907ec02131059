"""What a network is: its description, where its numbers lie, the numbers, and plans of what is computed with them."""
