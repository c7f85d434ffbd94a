"""A real report, of the preset reasoning on real data, for the tests of those who show one."""

import json
from pathlib import Path
from typing import Any

EXAMPLE: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text())
