"""What deformable layers have learned, over a validation set."""
