"""Types of table columns: which of them hold images, and which hold the same values in another width or encoding."""

import pyarrow as pa

from volgrowth.sources.arrays import BINARY, TEXT


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds bytes of any width; a dictionary's values count."""
    kind = without_dictionary(kind)
    return kind in BINARY or pa.types.is_fixed_size_binary(kind)


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds strings of any width; a dictionary's values count."""
    return without_dictionary(kind) in TEXT


def is_several(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds lists, of any length or of one. Views of lists are none of them."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_untold(kind: pa.DataType) -> bool:
    """Return whether a type is that of nulls alone, or of lists without elements: other values may follow."""
    return pa.types.is_null(kind) or (is_several(kind) and is_untold(kind.value_type))


def without_dictionary(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's values if it was written without a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def without_views(kind: pa.DataType) -> pa.DataType:
    """Return a type with large strings and binaries in place of views, from which Arrow cannot select rows."""
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(without_views(field.type)) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(without_views(kind.value_type)), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return make(kind.value_field.with_type(without_views(kind.value_type)))
    if pa.types.is_map(kind):
        key, item = (field.with_type(without_views(field.type)) for field in (kind.key_field, kind.item_field))
        return pa.map_(key, item, kind.keys_sorted)
    return kind


def image_fields(kind: pa.DataType) -> frozenset[str]:
    """Return which of the fields `bytes` and `path` a type has, if it is a struct that can hold an image, else none.

    Further fields, such as a width, are not looked at; a struct with them must have bytes.
    """
    fields = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    found = frozenset(fields) & {"bytes", "path"}
    if kind.num_fields != len(fields) or (fields.keys() - found and "bytes" not in found):
        return frozenset()
    # A column of paths alone is written with bytes of type null.
    fits = {"bytes": is_bytes, "path": is_text}
    return found if all(pa.types.is_null(fields[name]) or fits[name](fields[name]) for name in found) else frozenset()


def is_plain_image(kind: pa.DataType) -> bool:
    """Return whether a type is one that images are usually written in: a struct of bytes and path alone, or bytes."""
    if pa.types.is_struct(kind):
        return len(image_fields(kind)) == kind.num_fields > 0
    return is_bytes(kind) and not pa.types.is_dictionary(kind)


def same_values(a: pa.DataType, b: pa.DataType) -> bool:
    """Return whether columns of two types can hold the same values, which only width, encoding or order set apart.

    A column of nulls alone has the type null, and agrees with every other.
    """
    a, b = without_dictionary(a), without_dictionary(b)
    if a == b or pa.types.is_null(a) or pa.types.is_null(b):
        return True
    if is_several(a) and is_several(b):
        return same_values(a.value_type, b.value_type)
    return any(kind(a) and kind(b) for kind in (is_bytes, is_text, pa.types.is_integer, image_fields))
