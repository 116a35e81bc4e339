"""The report of an audit for people: one self-contained HTML page, and its figures as files."""

from volgrowth.report.gallery.exhibits import Exhibit, NearestSample, Shown, choose_exhibits
from volgrowth.report.gallery.pictures import thumbnail
from volgrowth.report.page import ReportOrigin, ReportPage, render_report

__all__ = [
    "Exhibit",
    "NearestSample",
    "ReportOrigin",
    "ReportPage",
    "Shown",
    "choose_exhibits",
    "render_report",
    "thumbnail",
]
