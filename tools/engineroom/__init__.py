"""engineroom: from a Hugging Face checkpoint to an autoscaled Triton + TensorRT-LLM service on Kubernetes."""

__version__ = "0.1.0"
