"""ResNet-50 and CLIP's image tower in torch, on which device, in batches of which size."""
