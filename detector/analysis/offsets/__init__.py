"""Statistics of what deformable layers have learned, over a validation set."""
