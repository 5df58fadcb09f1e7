"""A procedural dataset: parametric objects with PBR materials, their voxels and their pictures. One seed, one object."""
