"""Drawn pictures with enough detail for local features."""

import numpy as np
from PIL import Image, ImageDraw


def scene(seed: int, width: int = 360, height: int = 270) -> Image.Image:
    """Shapes of many sizes on a shaded ground, in colors near that of their place: it goes on as a photograph does."""
    rng = np.random.default_rng(seed)
    ground = Image.fromarray(rng.integers(40, 216, (3, 4, 3), dtype=np.uint8))
    image = ground.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(170):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        box = [x, y, x + int(rng.integers(3, 40)), y + int(rng.integers(3, 40))]
        color = tuple(int(value) for value in np.clip(image.getpixel((x, y)) + rng.integers(-40, 41, 3), 0, 255))
        (draw.ellipse, draw.rectangle)[rng.integers(2)](box, fill=color)
    return image
