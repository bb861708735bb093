from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.policies import Write, write_folder


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write files of a policy folder, with a default if none is given."""

    def writer(files: Mapping[str, Any]) -> Path:
        return write_folder(tmp_path / "policy", files)

    return writer
