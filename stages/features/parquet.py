"""How tables of features are stored in parquet: uncompressed, with a checksum per page that every reader verifies."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.core.messages import quote_value
from stages.core.stage import InputError, first_line

# Plain encoding without compression: a reader uses the file's bytes as values, without a copy. A page checksum is a
# CRC-32, which takes 0.3 ms per row group of the embedded profile's tokens to verify.
WRITE_OPTIONS: dict[str, Any] = {
    "compression": "none",
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,
}
READ_OPTIONS: dict[str, Any] = {"memory_map": True, "page_checksum_verification": True}


@contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """Turn the errors of reading a damaged file into an `InputError` that names it.

    Errors of the operating system, such as a missing file, pass.
    """
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:  # KeyError, ValueError: in the metadata
        if isinstance(error, OSError) and error.errno is not None:  # Arrow's own have no number
            raise
        reason = quote_value(first_line(error))
        raise InputError(f"{path} is damaged: {reason}; delete it and run `dvc repro`") from error
