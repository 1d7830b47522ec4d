"""Networks that answer relaxation times from two or three images."""
