"""Images, k-space, maps and phantoms in files."""
