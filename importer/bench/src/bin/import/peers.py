"""Seconds that Python takes to load an Avro file into PostgreSQL, so many times, a transaction each:
python peers.py psycopg|adbc URL FILE TIMES. Needs fastavro, cramjam, psycopg[binary]; polars, pyarrow,
adbc-driver-postgresql."""

import sys
import time


def psycopg_copy(url, path, times):
    """fastavro, and psycopg's binary COPY."""
    import fastavro
    import psycopg
    from psycopg.types.json import Jsonb

    with psycopg.connect(url) as connection:
        query = "SELECT column_name, udt_name FROM information_schema.columns WHERE table_name = 'peer_psycopg' ORDER BY ordinal_position"
        columns = connection.execute(query).fetchall()
        names = ", ".join(f'"{name}"' for name, _ in columns)
        start = time.perf_counter()
        for _ in range(times):
            with connection.transaction(), connection.cursor() as cursor, open(path, "rb") as file:
                with cursor.copy(f"COPY peer_psycopg ({names}) FROM STDIN (FORMAT binary)") as copy:
                    copy.set_types([kind for _, kind in columns])
                    for row in fastavro.reader(file):
                        row["segments"] = Jsonb(row["segments"])
                        copy.write_row([row[name] for name, _ in columns])
        return time.perf_counter() - start


def polars_adbc(url, path, times):
    """polars, and ADBC's ingestion into the table that it makes itself."""
    import adbc_driver_postgresql.dbapi
    import polars

    with adbc_driver_postgresql.dbapi.connect(url) as connection:
        start = time.perf_counter()
        for index in range(times):
            frame = polars.read_avro(path)
            mode = "append" if index else "replace"
            with connection.cursor() as cursor:
                cursor.adbc_ingest("peer_adbc", frame.to_arrow(), mode=mode)
            connection.commit()
        return time.perf_counter() - start


peer, url, path, times = sys.argv[1:]
print({"psycopg": psycopg_copy, "adbc": polars_adbc}[peer](url, path, int(times)))
