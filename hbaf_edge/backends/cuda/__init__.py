"""Our back ends for NVIDIA GPUs: device, kernels, dialogue scope, TensorRT engines and plugin."""
