"""From bytes on disk to a global jax.Array."""
