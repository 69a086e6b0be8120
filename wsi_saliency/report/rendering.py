"""Pages from the templates: whatever is shown is escaped, and what HTML forbids is replaced."""

from __future__ import annotations

import re

from jinja2 import Environment, PackageLoader, StrictUndefined

# A file's name may hold anything; these are not allowed in HTML, however they are written.
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")

TEMPLATES = Environment(
    loader=PackageLoader("wsi_saliency.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
"""The templates beside this module; to name something in them that is not given is an error."""


def rendered(template: str, **shown: object) -> str:
    """Return a page; ``shown`` are the things that the template names.

    Characters that HTML forbids become U+FFFD. The whole page is looked through, so that none slips past on a
    way of its own; the result can always be encoded.
    """
    return _FORBIDDEN.sub("\ufffd", TEMPLATES.get_template(template).render(shown))
