"""What B is when voxels share it: profile and marginal likelihoods, and B as a smooth map."""
