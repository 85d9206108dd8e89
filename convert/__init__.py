"""`python -m convert SRC DST`: checkpoints from one format to another."""
