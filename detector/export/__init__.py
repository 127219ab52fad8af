"""Export a trained detector for other runtimes: as ONNX, or as a program of torch.export."""
