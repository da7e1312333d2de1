"""What exists in the world: one TFDS builder a corpus."""
