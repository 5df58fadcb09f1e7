"""Meshes, voxel attributes and what turns them into assets. Knows no model version and no file format."""
