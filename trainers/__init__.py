"""From patches to networks, maps and reports."""
