"""A model, and encoded items for it, of any size."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from ascl.models import AsCL, EncodedImages, EncodedTexts


def _example(images=3, texts=5, k=4, longest=6, dim=24, heads=4, masked=True, dtype=torch.float64, seed=0, **variant):
    """AsCL with perturbed weights; images some of whose regions are masked; texts of 1 to `longest` words."""
    torch.manual_seed(seed)
    model = AsCL(8, 6, None, dim, heads, 0.7, **variant).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    mask = None
    if masked:
        mask = torch.rand(images, k) > 0.4
        mask[:, 0] = True
    encoded = model.encode_images(torch.randn(images, k, 8, dtype=dtype), torch.randn(images, 6, dtype=dtype), mask)
    lengths = torch.randint(1, longest + 1, (texts,))
    lengths[0] = 1
    words = EncodedTexts(2 * torch.randn(texts, longest, dim, dtype=dtype), torch.arange(longest) < lengths[:, None])
    images_student = None
    if encoded.student is not None:
        images_student = encoded.student.detach()
        words.student = F.normalize(torch.randn(texts, images_student.shape[1], dtype=dtype), dim=1)
    return model, EncodedImages(encoded.regions.detach(), encoded.globals.detach(), mask, images_student), words


@pytest.fixture(scope="session")
def example() -> Callable[..., tuple[AsCL, EncodedImages, EncodedTexts]]:
    return _example
