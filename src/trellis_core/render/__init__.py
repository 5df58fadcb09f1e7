"""Pictures of meshes, materials and voxels, on the GPU or on a processor."""
