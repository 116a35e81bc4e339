"""Files whose columns differ in width, encoding or order alone are one data set; those that really differ are not."""

import itertools
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.samples import again, digits, values
from volgrowth.errors import DataError
from volgrowth.sources import content_id, open_source
from volgrowth.sources.readers.tables.table_types import image_fields, is_plain_image, same_values

BYTES, PATH = pa.field("bytes", pa.binary()), pa.field("path", pa.string())
STRUCTS = {
    "usual": [BYTES, PATH],
    "order": [PATH, BYTES],
    "large": [pa.field("bytes", pa.large_binary()), pa.field("path", pa.large_string())],
    "views": [pa.field("bytes", pa.binary_view()), pa.field("path", pa.string_view())],
    "extra": [BYTES, PATH, pa.field("width", pa.int32())],
    "no paths": [BYTES],
    "null paths": [BYTES, pa.field("path", pa.null())],
}
PLAIN = {
    "binary": pa.binary(),
    "large binary": pa.large_binary(),
    "view": pa.binary_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.binary()),
}
LONGEST = max(map(len, digits(12)))
FILES = [digits(4), digits(8)[4:], digits(12)[8:]]


def struct(images, fields):
    return pa.array([{field.name: data if field.name == "bytes" else None for field in fields} for data in images])


def column(images, form):
    if form == "nulls":
        return pa.nulls(len(images))
    if form == "fixed":
        return pa.array([data.ljust(LONGEST, b"\0") for data in images], pa.binary(LONGEST))
    if form in STRUCTS:
        return struct(images, STRUCTS[form]).cast(pa.struct(STRUCTS[form]))
    kind = PLAIN[form]
    return pa.array(images).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(images, kind)


def write(folder, *tables):
    folder.mkdir(exist_ok=True)
    for number, table in enumerate(tables):
        pq.write_table(pa.table(table), folder / f"{number}.parquet")
    return str(folder)


def read(source):
    return [(row.image_id, row.condition, row.data) for row in source.read(0, source.num_rows)]


ORDERS = [
    *itertools.permutations([*STRUCTS, "nulls"], 2),
    *itertools.permutations([*PLAIN, "fixed", "nulls"], 2),
]


@pytest.mark.parametrize(("first", "second"), ORDERS)
def test_images_in_columns_of_another_width_are_one_data_set(tmp_path, first, second):
    data = write(tmp_path / "d", *({"image": column(FILES[k], form)} for k, form in enumerate((first, second))))
    source = open_source(data)
    expected = [None if form == "nulls" else image for k, form in enumerate((first, second)) for image in FILES[k]]
    found = [
        row.data and row.data.rstrip(b"\0").ljust(len(image or b""), b"\0")
        for row, image in zip(source.read(0, 8), expected, strict=True)
    ]
    assert found == expected
    assert read(again(source, data)) == read(source)


@pytest.mark.parametrize("form", [*STRUCTS, *PLAIN])
def test_images_are_found_by_every_type_that_holds_them(tmp_path, form):
    data = write(tmp_path / "d", {"label": [1, 2, 3, 4], "image": column(FILES[0], form)})
    assert [row.data for row in open_source(data).read(0, 4)] == FILES[0]


IDS = [pa.array([1, 2, 3, 4], kind) for kind in (pa.int8(), pa.int32(), pa.int64(), pa.uint64())]
TEXTS = [pa.array(list("abcd"), kind) for kind in (pa.string(), pa.large_string(), pa.string_view())]
ENCODED = [texts.dictionary_encode() for texts in TEXTS[:2]]
LISTS = [pa.array([["a"], [], None, ["b"]], kind) for kind in (pa.list_(pa.string()), pa.large_list(pa.large_string()))]
NO_LISTS = pa.array([[], [], None, []], pa.list_(pa.null()))


@pytest.mark.parametrize(
    "columns", [[pa.nulls(4), *IDS], [pa.nulls(4), *TEXTS, *ENCODED], [NO_LISTS, pa.nulls(4), *LISTS]], ids=len
)
def test_conditions_and_ids_of_another_width_are_one_column(tmp_path, columns):
    for order in (columns, columns[::-1], columns[1:] + columns[:1]):
        tables = [{"image": values(FILES[0]), "told": told, "id": told} for told in order]
        data = write(tmp_path / "d", *tables)
        options: dict[str, Any] = {"condition_column": "told"}
        if not pa.types.is_nested(order[-1].type):
            options["id_column"] = "id"
        source, told = open_source(data, **options), [value for some in order for value in some.to_pylist()]
        found = read(source)
        assert [condition for _, condition, _ in found] == [
            (value[0] if value else None) if isinstance(value, list) else value for value in told
        ]
        if "id_column" in options:
            unnamed = [content_id(image) for image in FILES[0]] * len(order)
            assert [name for name, *_ in found] == [
                unnamed[row] if value is None else str(value) for row, value in enumerate(told)
            ]
        assert read(again(source, data, **options)) == found


def test_a_column_of_nulls_in_every_file_is_none(tmp_path):
    tables = [{"image": values(FILES[0]), "told": pa.nulls(4)}] * 2
    with pytest.raises(DataError, match=r"column 'told' .* holds null, not conditions"):
        open_source(write(tmp_path / "d", *tables), condition_column="told")
    assert open_source(write(tmp_path / "d", *tables)).num_rows == 8
    with pytest.raises(DataError, match=r"column 'told' .* holds nulls alone, not images"):
        open_source(write(tmp_path / "d", *tables), image_column="told")


def test_of_two_image_columns_one_is_named_though_the_first_file_has_one(tmp_path):
    data = write(
        tmp_path / "d",
        {"left": values(FILES[0]), "right": pa.nulls(4)},
        {"left": values(FILES[0]), "right": values(FILES[1])},
    )
    with pytest.raises(DataError, match=r"several image columns \(left, right\)"):
        open_source(data)
    source = open_source(data, image_column="right")
    assert [row.data for row in source.read(0, 8)] == [None] * 4 + FILES[1]
    assert read(again(source, data, image_column="right")) == read(source)


@pytest.mark.parametrize(
    ("other", "held"),
    [
        ({"image": values(FILES[1])}, "nothing"),
        ({"image": values(FILES[1]), "id": [1.0, 2.0, 3.0, 4.0]}, "double"),
        ({"image": values(FILES[1]), "id": [["a"]] * 4}, "list<element: string>"),
    ],
)
@pytest.mark.parametrize("first", [pa.nulls(4), pa.array(list("abcd"))], ids=["nulls", "text"])
def test_files_that_really_differ_are_refused_by_file_and_column(tmp_path, other, held, first):
    known = {"image": values(FILES[0]), "id": pa.array(list("abcd"))}
    data = write(tmp_path / "d", {"image": values(FILES[0]), "id": first}, known, other)
    with pytest.raises(DataError) as caught:
        open_source(data, id_column="id")
    place = "0" if first.type == pa.string() else "1"
    assert str(caught.value).startswith(f"column 'id' holds {held} in 2.parquet and ")
    assert f" in {place}.parquet: the files of one data set" in str(caught.value) or held == "nothing"
    assert open_source(data).num_rows == 12


def test_two_columns_of_one_name_are_refused_only_where_one_of_them_is_meant(tmp_path):
    twice = pa.Table.from_arrays([values(FILES[0]), pa.array(range(4)), pa.array(range(4))], ["image", "x", "x"])
    data = write(tmp_path / "d", twice)
    assert [row.data for row in open_source(data).read(0, 4)] == FILES[0]
    for option in ("image_column", "id_column", "condition_column"):
        with pytest.raises(DataError, match="has 2 columns of the name 'x', and which one is meant cannot be told"):
            open_source(data, **cast(Any, {option: "x"}))
    pictures = pa.Table.from_arrays([values(FILES[0])] * 2, ["image"] * 2)
    with pytest.raises(DataError, match="has 2 columns of the name 'image'"):
        open_source(write(tmp_path / "e", pictures))
    later = write(tmp_path / "f", {"image": values(FILES[0])}, pictures)
    with pytest.raises(DataError, match=r"holds 2 columns of this name in 1\.parquet"):
        open_source(later)


@pytest.mark.parametrize("name", ["a.b", "image.path", "class", "é ü", "", "image.bytes"])
def test_any_name_is_the_name_of_a_column(tmp_path, name):
    data = write(tmp_path / "d", {name: values(FILES[0]), "t.x": list("abcd")})
    source = open_source(data, id_column="t.x", condition_column="t.x")
    assert read(source) == list(zip("abcd", "abcd", FILES[0], strict=True))


def test_a_column_inside_another_is_named_with_the_fix(tmp_path):
    inside = pa.StructArray.from_arrays([pa.array(list("abcd"))], names=["text"])
    data = write(tmp_path / "d", {"image": values(FILES[0]), "meta": inside})
    with pytest.raises(DataError, match=r"what 'meta' holds becomes a column by table\.append_column\('meta\.text'"):
        open_source(data, condition_column="meta.text")


def test_types_that_hold_no_image():
    number, text = pa.field("width", pa.int32()), pa.field("bytes", pa.string())
    for kind in (pa.struct([number]), pa.struct([text, PATH]), pa.struct([PATH, number]), pa.list_(pa.binary())):
        assert not image_fields(kind)
        assert not is_plain_image(kind)
    assert not same_values(pa.binary(), pa.struct([BYTES, PATH]))
    assert not same_values(pa.list_(pa.null()), pa.string())
    assert not same_values(pa.int64(), pa.string())
    assert same_values(pa.list_(pa.null()), pa.large_list(pa.string()))
