"""The deformable ResNet and the Faster R-CNN on it."""
