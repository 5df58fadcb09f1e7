"""`trellis render ASSET|BUNDLE`: a PNG sheet of an asset, or of the mesh and voxels of a saved run."""
