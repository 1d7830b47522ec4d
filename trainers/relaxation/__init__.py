"""Learning relaxation times through what relaxation says of any two images of a voxel (huang2022, huang2023)."""
