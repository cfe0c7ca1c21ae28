"""Write scalars for TensorBoard in the calling thread.

TensorBoard's own writer uses another thread, where a failure ends in a traceback.
"""

import os
import socket
import time
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR, SummaryMetadata
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

_METADATA = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"), data_class=DATA_CLASS_SCALAR)


class EventFile:
    """Event file of TensorBoard."""

    def __init__(self, folder: Path) -> None:
        """Create a new file in the folder, and the folder if it does not exist."""
        folder.mkdir(parents=True, exist_ok=True)
        moment = time.time()
        name = f"events.out.tfevents.{int(moment):010d}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self._file = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=moment, file_version="brain.Event:2"))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Write one number of the series `tag`."""
        event = Event(wall_time=time.time(), step=step)
        event.summary.value.add(tag=tag, tensor=make_tensor_proto(np.float32(value)), metadata=_METADATA)
        self._write(event)

    def flush(self) -> None:
        """Flush the written events to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
