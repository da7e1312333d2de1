"""Hugging Face files ⇄ our parameters: one readable table a family, used in both directions."""
