"""Which pixels does a model take? How many channels, and which values of a file are black and white."""

from typing import NamedTuple

FEWEST_CHANNELS, MOST_CHANNELS = 2, 12


class Pixels(NamedTuple):
    """What the values of a picture's file become.

    Attributes:
        channels: of the model: 3, which are RGB, or three times a grey one; or 2, or 4 to 12, which are as in the file.
        range: the values that become 0 and 255, as floats without rounding; what lies outside is cut off. None takes
            8 bits as they are.
        large: whether pictures are read that are too large to be seen as a whole: the model sees tiles.
    """

    channels: int = 3
    range: tuple[float, float] | None = None
    large: bool = False

    @property
    def plain(self) -> bool:
        """Whether any program's idea of a picture will do: RGB of 8 bits."""
        return self[:2] == RGB[:2]

    def __str__(self) -> str:
        shown = f"{self.channels} channels"
        return shown if self.range is None else f"{shown}, values {self.range[0]:g} to {self.range[1]:g}"


RGB = Pixels()
