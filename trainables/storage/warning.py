"""Warnings that a process gives once, however often it comes upon the same thing."""

from __future__ import annotations

import logging
from functools import cache

logger = logging.getLogger("fine-sweeps")


@cache
def warn_once(text: str) -> None:
    logger.warning("%s", text)
