"""What can be told from code alone, kept while the code stays as it is: a short command need not find it out again."""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from assets.home import home
from pipeline.files import atomic_path


def kept(name: str, state: Callable[[], str], find: Callable[[], Any], read: Callable[[Any], Any]) -> Any:
    """What `read` makes of what `find` gives, which is kept as JSON; found anew if the state changed or it is damaged.

    Parameters
    ----------
    name
        Of the file, in the home folder's cache.
    state
        Names all that the result depends on. It is kept only if that did not change while it was found.
    """
    file = home() / "cache" / "code" / f"{name}.json"
    now = state()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["state"] == now:
            return read(found["found"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # nothing is kept, or it is damaged
    made = find()
    if state() == now:
        with suppress(OSError), atomic_path(file) as temporary:  # a home that cannot be written costs the time again
            temporary.write_text(json.dumps({"state": now, "found": made}), encoding="utf-8")
    return read(made)
