"""A trained detector for other runtimes: ONNX, and programs of torch.export."""
