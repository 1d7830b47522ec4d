"""How sharp the boundary between two tissues is: profiles placed by labels, edges fitted to maps."""
