"""Train, evaluate and ablate Faster R-CNN with deformable convolutions."""
