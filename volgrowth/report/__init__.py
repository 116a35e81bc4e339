"""The audit for people: one self-contained HTML page, and its figures as files."""

from volgrowth.report.exhibits import Exhibit, Sample, Shown, exhibits
from volgrowth.report.html import Report, render
from volgrowth.report.pictures import thumbnail

__all__ = ["Exhibit", "Report", "Sample", "Shown", "exhibits", "render", "thumbnail"]
