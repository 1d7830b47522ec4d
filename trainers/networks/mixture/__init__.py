"""Networks whose answer is a posterior of log T per voxel: a mixture of normals, the likelihood in closed form."""
