"""A procedural dataset: parametric objects, their PBR voxels and their pictures. One seed, one object."""
