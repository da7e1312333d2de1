"""What is trained: the only package that knows there are two stages."""
