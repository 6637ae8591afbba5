"""Weights from and to Hugging Face folders, by one name table read in both directions."""
