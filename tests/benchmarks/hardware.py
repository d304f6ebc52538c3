"""Descriptions of hardware and software for the reports of benchmarks."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def hardware(device: str = "cpu") -> str:
    """Return a description of the GPU if one is used, the processor, its instruction set and the number of threads."""
    import torch

    gpu = f"{torch.cuda.get_device_name(device)}; " if torch.device(device).type == "cuda" else ""
    threads = torch.get_num_threads()
    count = f"{threads} thread{'s' if threads > 1 else ''}"
    return f"{gpu}{processor()}, {torch.backends.cpu.get_cpu_capability()}, {count}"


def processor() -> str:
    """Return the name of the processor, which `platform` knows only outside Linux."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions(*packages: str) -> str:
    """Return the versions of Python and of those packages that are installed."""
    found = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
