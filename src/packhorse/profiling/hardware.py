"""Description of this machine, as far as it affects speed."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from packhorse.profiling.cores import usable_cores


def machine() -> dict[str, Any]:
    """Return processor, usable cores, memory (bytes), int8-relevant instruction sets and system."""
    import psutil

    fields = _cpuinfo()
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "processor": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "instructions": sorted(
            flags & {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
        ),
        "system": platform.platform(),
    }


def _cpuinfo() -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo; empty if there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
