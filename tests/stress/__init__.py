"""What the suite has no time for: repetition, breadth, chance."""

import datetime
import json
import os
from typing import Any


def publish(result: dict[str, Any]) -> dict[str, Any]:
    """Print a result, with when and on what it was found, as one line of JSON."""
    from jaxlab import runtime

    machine = f"{runtime.processor()}, {os.cpu_count()} cores"
    result = {**result, "date": f"{datetime.date.today()}", "machine": machine}
    print(json.dumps(result), flush=True)
    return result
