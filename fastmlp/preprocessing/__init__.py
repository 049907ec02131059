"""What raw rows go through before a network: numbers imputed and scaled, categories one-hot; kept in its file."""
