"""ViT, Swin, ConvNeXt and EfficientNet of timm."""
