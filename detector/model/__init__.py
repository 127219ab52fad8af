"""The deformable ResNet and the Faster R-CNN built on it."""
