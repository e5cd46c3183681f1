"""Adapts a ViT, Swin, ConvNeXt or EfficientNet to your classes; the same as `samtune finetune`.

python scripts/finetune_vit.py --config folders.yaml [key=value ...]
"""

import sys

from samtune.cli.main import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
