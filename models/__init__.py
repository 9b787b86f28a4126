"""ResNet-50 and the CLIP vision tower in torch."""
