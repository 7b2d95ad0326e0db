"""What runs a bundle's graphs: ONNX Runtime, or our own kernels and TensorRT engines on an NVIDIA GPU."""
