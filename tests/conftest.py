"""What all tests share: how hypothesis searches."""

import os

from hypothesis import settings

# A loaded machine is no reason to fail. On CI the same examples are tried every time.
settings.register_profile("suite", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("suite")
