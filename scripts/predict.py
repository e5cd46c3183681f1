"""Writes a mask for each image; the same as `samtune predict`.

python scripts/predict.py --checkpoint FILE PATH... --out DIR
"""

import sys

from samtune.cli.main import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
