"""ResNet-50 and the CLIP vision tower in torch, and the devices that compute them."""
