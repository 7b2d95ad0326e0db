"""Back ends that run a bundle's graphs: ONNX Runtime, and our kernels and TensorRT engines on NVIDIA GPUs."""
