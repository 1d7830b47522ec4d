"""From a config to patches on disk."""
