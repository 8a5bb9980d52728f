"""The process that records a stage's live runs in MLflow; `stages/core/live.py` starts it and describes its input."""

import argparse
import json
import os
import sys
import threading
from queue import SimpleQueue
from typing import BinaryIO


def read_messages(stream: BinaryIO, messages: "SimpleQueue[dict | None]") -> None:
    """Put every message into the queue, and None at the end."""
    for line in stream:
        if line.endswith(b"\n"):  # the stage may be killed within a line
            messages.put(json.loads(line))
    messages.put(None)


def main(stage: str) -> None:
    messages: SimpleQueue[dict | None] = SimpleQueue()
    # From the first moment: the pipe holds 64 kB, and a stage with many runs must not wait for MLflow's import.
    threading.Thread(target=read_messages, args=(sys.stdin.buffer, messages), daemon=True).start()
    from stages.tracking.live_runs import record_messages

    record_messages(stage, messages)
    # Without Python's cleanup, which takes half a second: MLflow imports a thousand modules.
    os._exit(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", help="the stage in dvc.yaml, for messages")
    main(parser.parse_args().stage)
