"""Documents that harm whoever parses them in good faith; ``{root}`` is the name of the root element."""

from __future__ import annotations

_ENTITIES = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))

BOMB = f'<?xml version="1.0"?><!DOCTYPE {{root}} [<!ENTITY e0 "ha">{_ENTITIES}]><{{root}}>&e11;</{{root}}>'
"""An entity bomb: eleven tens of entities in one another, 200 GB of text."""

EXTERNAL = (
    '<?xml version="1.0"?><!DOCTYPE {root} [<!ENTITY x SYSTEM "file:///etc/passwd">]><{root}>&x;</{root}>'
)
"""An entity that is another file."""

EXTERNAL_SUBSET = '<?xml version="1.0"?><!DOCTYPE {root} SYSTEM "http://127.0.0.1:1/x.dtd"><{root}/>'
"""A document type that is fetched."""

PARAMETER = '<?xml version="1.0"?><!DOCTYPE {root} [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]><{root}/>'
"""An entity of the document type itself that is another file."""
