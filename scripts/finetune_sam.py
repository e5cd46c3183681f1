"""Adapts a Segment Anything model to your images; the same as `samtune finetune`.

python scripts/finetune_sam.py --config polyp.yaml [key=value ...]
"""

import sys

from samtune.cli.main import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
