"""Computing on a device: precisions, memory, batches of both models, CUDA graphs."""
