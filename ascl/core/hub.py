"""Download models from the Hugging Face hub, without a minute of retries where there is no network."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 5.0  # seconds in which the hub has to answer a first request


@contextmanager
def one_try_at_the_hub(needed: bool) -> Iterator[None]:
    """Ask once whether the hub answers; if it does not, let the libraries in the block read only what is in its cache.

    Otherwise they try each file again and again, which takes a minute without a network.

    Args:
        needed: False for a local folder, which asks nobody.
    """
    if not needed:
        yield
        return
    from huggingface_hub import constants  # slow to import

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        # a name that is not known, or nothing behind it; a certificate that only this request refuses is an answer
        return not isinstance(error.reason, (OSError, TimeoutError)) or "SSL" in type(error.reason).__name__
    except OSError:
        return False
    return True
