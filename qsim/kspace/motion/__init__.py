"""Motion: a trajectory over the time of acquisition, and the composite k-space that it leaves behind."""
