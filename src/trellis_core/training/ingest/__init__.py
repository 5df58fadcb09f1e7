"""From a folder of the user's meshes to training data: what every model version does alike."""
