"""The audit for people: one self-contained HTML page."""

from volgrowth.report.html import render

__all__ = ["render"]
