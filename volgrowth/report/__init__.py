"""The audit for people: one self-contained HTML page, and its figures as files."""

from volgrowth.report.gallery.exhibits import Exhibit, Sample, Shown, exhibits
from volgrowth.report.gallery.pictures import thumbnail
from volgrowth.report.page import Report, render

__all__ = ["Exhibit", "Report", "Sample", "Shown", "exhibits", "render", "thumbnail"]
