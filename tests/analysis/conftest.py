"""Every drawing test begins with matplotlib's own settings, whatever others set before in the same process."""

import matplotlib
import pytest


@pytest.fixture(autouse=True)
def matplotlibs_own_settings():
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.use("Agg")
        yield
