"""Files, written whole or not at all, and read with a reason where they are not what they should be."""
