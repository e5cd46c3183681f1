"""ViT, Swin and ConvNeXt of timm."""
