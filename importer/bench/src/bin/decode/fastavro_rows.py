"""ns per row of fastavro on the files the bench keeps: FILES=folder cargo run --release --bin
decode; then python fastavro_rows.py folder (needs fastavro and cramjam)."""

import sys
import time
from pathlib import Path

import fastavro

for path in sorted(Path(sys.argv[1]).glob("*.avro")):
    times = []
    for _ in range(3):
        with path.open("rb") as file:
            start = time.perf_counter()
            rows = sum(1 for _ in fastavro.reader(file))
            times.append((time.perf_counter() - start) / rows * 1e9)
    print(f"{path.stem:24} {sorted(times)[1]:8.0f}")
