"""Stress tests that take too long for the test suite."""

import datetime
import json
import os
from typing import Any


def publish(result: dict[str, Any]) -> dict[str, Any]:
    """Print a result with its date and machine as one line of JSON, and return it."""
    from jaxlab import runtime

    machine = f"{runtime.processor()}, {os.cpu_count()} cores"
    result = {**result, "date": f"{datetime.date.today()}", "machine": machine}
    print(json.dumps(result), flush=True)
    return result
