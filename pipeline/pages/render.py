# SPDX-License-Identifier: Apache-2.0
"""A template and its content become the text of one HTML page, without scripts and without links to elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_HERE = Path(__file__).parent


def render(template: Path, **content: Any) -> str:
    """Return the page that `template` makes of `content`; it may extend `base.html.j2` and import `parts.html.j2`.

    Names come from files of others, so whatever the template shows is escaped; a name that it lacks is an error.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(**content)
