"""Skipped stages: a stage without input leaves valid, empty outputs that hold the reason.

The stages after it, and the report, read the reason from there.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open

from stages.core.atomic import atomic_write, remove_folders, write_text

FOLDER_RECORD = "skipped.json"
METADATA_KEY = "skipped"  # of parquet and safetensors files


def mark_skipped(reason: str, *outputs: Path) -> None:
    """Print the reason, a line, and write empty outputs with it. An output is a folder if it has no file suffix.

    A folder then holds only `skipped.json`, a parquet file has no columns and a safetensors file no tensors.
    """
    print(reason)
    record = json.dumps({"status": "skipped", "reason": reason}, indent=1) + "\n"
    for output in outputs:
        if output.suffix == ".parquet":
            schema = pa.schema([], metadata={METADATA_KEY: reason})
            with atomic_write(output) as temporary:
                pq.write_table(schema.empty_table(), temporary)
        elif output.suffix == ".safetensors":
            from stages.core.weights_file import save_weights  # torch takes seconds to import

            save_weights(output, {}, **{METADATA_KEY: reason})
        elif output.suffix == ".json":
            write_text(output, record)
        else:
            remove_folders(output)
            write_text(output / FOLDER_RECORD, record)


def skip_reason(output: Path) -> str | None:
    """Read why an output was skipped: a folder, run record, parquet or safetensors file. None if it was not."""
    if output.is_dir():
        return skip_reason(output / FOLDER_RECORD)
    if not output.is_file():
        return None
    # Of the binary files, only the metadata is read.
    if output.suffix == ".parquet":
        reason = (pq.read_schema(output).metadata or {}).get(METADATA_KEY.encode())
        return reason.decode() if reason else None
    if output.suffix == ".safetensors":
        with safe_open(output, framework="numpy") as file:
            metadata = file.metadata() or {}
        return json.loads(metadata[METADATA_KEY]) if METADATA_KEY in metadata else None
    try:
        record = json.loads(output.read_text(encoding="utf-8"))
    except ValueError:  # a damaged record: `read_run` reports it
        return None
    is_skipped = isinstance(record, dict) and record.get("status") == "skipped"
    return record["reason"] if is_skipped else None
