"""Choice of the home of all hidden states, once per run."""

from __future__ import annotations

import torch

from camelpress.core.progress import note
from camelpress.inference.model.memory_budget import free_bytes
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.inference.streaming.state_home import FileHome, MemoryHome, StateHome

DEVICE_FRACTION = 0.6  # share of a GPU's free memory; two blocks and their Hessians need the rest
PINNED_FRACTION = 0.25  # share of the free host memory beside a GPU
HOST_FRACTION = 0.0  # the same without one: files keep the memory small, and the system caches them


def choose_home(state_bytes: int, device: torch.device, team: ProcessGroup) -> StateHome:
    """Returns the home of the states: the compute device, host memory, or files.

    The codes and figures of a run do not depend on it.

    Args:
        state_bytes: bytes of all states of all ranks.
        device: compute device of this rank.
        team: process group; the ranks share the host memory and have a device each.
    """
    place = team.broadcast(lambda: _choose_place(state_bytes, device, team.size))
    where = {"device": f"on {device}", "host": "in host memory", "files": "in files"}[place]
    if state_bytes and _is_gpu(device):  # without a GPU there is no choice
        note(f"hidden states: {state_bytes / 1e9:.2f} GB {where}")
    if place == "device":
        return MemoryHome(device)
    if place == "host":
        return MemoryHome(torch.device("cpu"), pinned=torch.cuda.is_available() and _is_gpu(device))
    return FileHome()


def _choose_place(state_bytes: int, device: torch.device, ranks: int) -> str:
    if _is_gpu(device) and state_bytes / ranks <= DEVICE_FRACTION * (free_bytes(device) or 0):
        return "device"
    fraction = PINNED_FRACTION if _is_gpu(device) else HOST_FRACTION
    free = free_bytes(torch.device("cpu")) or 0  # unknown memory counts as none
    return "host" if 0 < state_bytes <= fraction * free else "files"


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"
