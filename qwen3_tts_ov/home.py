"""For users without a home, as in a container that runs under a number that the system does not know."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def some_home() -> Iterator[None]:
    """Makes the temporary folder the home while a library is imported that needs one, if there is none.

    OpenVINO cannot be imported without a home; huggingface_hub would make a cache in a folder called "~".
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.gettempdir()
        try:
            yield
        finally:
            del os.environ["HOME"]
    else:
        yield
