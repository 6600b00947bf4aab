"""Which metrics are shown, and in which order."""

import re
from collections.abc import Iterable

METRIC = re.compile(r"(?P<kind>recall|ndcg)_at_(?P<k>\d+)")


def ranking_metrics(names: Iterable[str]) -> list[str]:
    """Metrics of a ranking among some names, each once: recall first, cut-offs ascending."""
    found = [match for name in dict.fromkeys(names) if (match := METRIC.fullmatch(name))]
    return [match[0] for match in sorted(found, key=lambda match: (match["kind"] != "recall", int(match["k"])))]
