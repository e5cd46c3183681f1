"""How do images/ with instances/, and COCO's annotations, become pairs of image and map of objects?"""

from functools import partial

from samtune.data.pairs import scan_folder

FOLDER = "instances"
"""What the folder of maps beside images/ is called."""

scan_objects = partial(scan_folder, masks_in=FOLDER)
