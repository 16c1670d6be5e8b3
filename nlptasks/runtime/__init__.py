"""The ways to run a model's graphs: PyTorch and ONNX Runtime. They share one protocol, `nlptasks.types.Runtime`."""
