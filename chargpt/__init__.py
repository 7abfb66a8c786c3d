"""Train and sample character-level GPTs."""
