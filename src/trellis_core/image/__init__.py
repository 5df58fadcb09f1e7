"""Pictures before a model sees them: transparency, background, crop. Knows no file format and no model."""
