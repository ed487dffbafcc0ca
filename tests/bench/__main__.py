"""`make bench`: run every benchmark, print and write build/bench.json, a flat map from name to number."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bench import batch_upload, engine, queue, reward_actor, submissions, throughput

results = {
    name: round(value, 4)
    for part in (submissions, queue, batch_upload, engine, throughput, reward_actor)
    for name, value in part.measure().items()
}
Path("build").mkdir(exist_ok=True)
Path("build/bench.json").write_text(json.dumps(results, indent=1) + "\n")
print(json.dumps(results, indent=1))
