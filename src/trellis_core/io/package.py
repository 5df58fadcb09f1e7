"""Zip files as USDZ and 3MF are made of, the same bytes for the same content."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping

EPOCH = (1980, 1, 1, 0, 0, 0)
LOCAL_HEADER = 30  # bytes before the name
PADDING_ID = 0x1986  # of the extra field that only takes up space


def zip_files(
    files: Mapping[str, bytes],
    *,
    compress: bool = True,
    align: int = 1,  # each file's content starts at a multiple of this
) -> bytes:
    """A zip archive of files, in their order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
            start = buffer.tell() + LOCAL_HEADER + len(name.encode())
            missing = -start % align
            if missing:
                missing += align if missing < 4 else 0  # an extra field has four bytes of its own
                entry.extra = struct.pack("<HH", PADDING_ID, missing - 4) + b"\0" * (missing - 4)
            archive.writestr(entry, content, compresslevel=6)
    return buffer.getvalue()
