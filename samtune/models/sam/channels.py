"""How does a network that was trained on RGB take another number of channels? By more input filters in its stem."""

import torch
from torch import Tensor

from samtune.config.pixels import FEWEST_CHANNELS, MOST_CHANNELS
from samtune.errors import ConfigError

RGB = 3


def check_channels(count: int) -> None:
    """Raises a `ConfigError` for a number of channels that no model is made for."""
    if not FEWEST_CHANNELS <= count <= MOST_CHANNELS:
        grey = " Grey pictures need no setting: they become three equal channels." if count == 1 else ""
        possible = f"{FEWEST_CHANNELS} to {MOST_CHANNELS}, 3 for RGB and grey"
        raise ConfigError(f"model.channels is {count}; possible are {possible}.{grey}")


def kept(count: int) -> int:
    """Returns how many of `count` channels have filters of their own in the pretrained weights: the first three.

    Two channels have none: neither is a colour.
    """
    return RGB if count >= RGB else 0


def extended_filters(weight: Tensor, count: int) -> Tensor:
    """Returns the (O, n, k, k) filters of n = `count` channels that start from the (O, 3, k, k) ones of RGB.

    The first three channels keep theirs and each further one gets the mean of the three; of two channels both get the
    mean. All are scaled by 3 / n, so that n equal channels give exactly the response of three equal ones.
    """
    mean = weight.mean(dim=1, keepdim=True)
    parts = [weight[:, : kept(count)], mean.expand(-1, count - kept(count), -1, -1)]
    return torch.cat(parts, dim=1) * (RGB / count)


def extended_colours(values: tuple[float, ...], count: int) -> tuple[float, ...]:
    """Returns the mean or deviation of each of `count` channels: of a further one it is the mean of RGB's three."""
    return (*values[: kept(count)], *[round(sum(values) / len(values), 6)] * (count - kept(count)))
