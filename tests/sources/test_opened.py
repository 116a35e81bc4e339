import json
from dataclasses import asdict

from volgrowth.sources import Opened
from volgrowth.sources.opened import LeftAside, kinds_counted


def test_two_lines_say_what_was_opened_and_what_was_left_aside():
    tars = LeftAside("tar file", 1, "images lie beside it", "backup.tar")
    opened = Opened("parquet file", 2, 1200, {"image": "picture", "id": "name", "condition": ".txt"}, (tars,))
    assert opened.lines() == [
        "opened: 1,200 rows of 2 parquet files; images from column picture, ids from column name, "
        "conditions from members ending in .txt",
        "left aside: 1 tar file (images lie beside it, such as backup.tar)",
    ]
    assert Opened("image file", 1, 1).lines("held out") == ["held out: 1 row of 1 image file", "left aside: nothing"]


def test_the_record_survives_json():
    opened = Opened("tar file", 1, 5, {"image": ".jpg"}, (LeftAside("link", 3, "to files that are rows"),))
    assert Opened.from_json(json.loads(json.dumps(asdict(opened)))) == opened


def test_kinds_of_files_are_counted_by_their_ends():
    names = ["a.CSV", "b.csv", "c.npz", "README", *(f"x.k{number}" for number in range(9))]
    said = kinds_counted(names)
    assert said.startswith("2 .csv files, 1 .npz file, 1 extensionless file, 1 .k0 file")
    assert said.endswith("4 other files")
    assert kinds_counted([]) == "nothing"
