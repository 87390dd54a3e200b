"""JSON as clients send it, valid and invalid: messages, batches, and bodies of lease operations."""

import json
import random
from collections.abc import Callable, Sequence

from tests.fuzz.mutation import mutate

_SPACES = ("", "", "", " ", "\n", "\t\r\n ", "\x0b", "\xa0", "\f")
#: Values that are not, or are barely, a message's text, name, timeout or delay.
_VALUES = (
    *("null", "true", "false", "0", "-0", "1", "-1", "60", "2592000", "2592001", "1.0", "60.0"),
    *("1.5", "1e1", "1E+2", "1e-1", "6e400", "-1e400", "NaN", "Infinity", "-Infinity", "01", "1."),
    *(".5", "+1", "0x10", "1_0", "9" * 400, "-" + "9" * 400, "9" * 5000, "1" + "0" * 309, "1e"),
    *("18446744073709551616", "-9223372036854775809", "1.7976931348623159e308", "0.1e1", "1e0"),
    *(
        '""',
        '"60"',
        '"."',
        '".."',
        '"..."',
        "[]",
        "[1]",
        "{}",
        '{"a": 1}',
        "[[[[]]]]",
        "nul",
        "'a'",
    ),
    *('"\\ud83d\\ude00"', '"\\ud83d"', '"\\ude00\\ud83d"', '"\\u0000"', '"\\u000a"', '"\\u007f"'),
    *(
        '"\\u0085"',
        '"\\q"',
        '"\\u12"',
        '"\\x41"',
        '"\n"',
        '"\t"',
        '"\x7f"',
        '"\x85"',
        '"a\\/b"',
        '"a',
    ),
    *(
        '"\\"\\\\\\b\\f\\n\\r\\t"',
        '"\u202e"',
        '"\ufeff"',
        '"e\u0301"',
        '"\U0001f600"',
        '"a b"',
        '"%41"',
    ),
    *('{"a": "\\ud800"}', '["\\ud800"]', '["\\q"]', "[NaN]", "[01]", '{"a": }', '{"a" 1}', "[1,]"),
    *('{"a": 1,}', "[,]", '{"\\ud800": 1}', "{1: 2}", "[1e999]", "[" + "9" * 400 + "]", "{]", "[}"),
)
_NAMES = ("text", "username", "timeout", "delay")
_OTHERS = ("Text", "TEXT", "text ", "delays", "id", "", "x", "\\u0074ext", "user\\u006eame", "ttl")


def value(rng: random.Random) -> str:
    """Return any value, in JSON or in something similar."""
    return rng.choice(_VALUES)


def _string(rng: random.Random, most: int = 40) -> str:
    letters = 'abcXYZ019 .-_/%\u00e9\u20ac\U0001f600\u0000\u007f"\\\n'
    made = "".join(rng.choice(letters) for _ in range(rng.randrange(most)))
    return json.dumps(made, ensure_ascii=rng.random() < 0.5)


def _space(rng: random.Random) -> str:
    return rng.choice(_SPACES[:6] if rng.random() < 0.97 else _SPACES) if rng.random() < 0.3 else ""


def obj(rng: random.Random, fields: Sequence[tuple[str, str]]) -> str:
    """Return an object with these fields, with spaces in allowed places and elsewhere."""
    parts = (
        f'{_space(rng)}"{name}"{_space(rng)}:{_space(rng)}{each}{_space(rng)}'
        for name, each in fields
    )
    return f"{_space(rng)}{{{','.join(parts)}}}{_space(rng)}"


def message(rng: random.Random, name: str, is_good: bool | None = None) -> bytes:
    """Return a message for an inbox: half of them valid, the others wrong in one or two places."""
    if is_good is None:
        is_good = rng.random() < 0.5
    username = json.dumps(name, ensure_ascii=rng.random() < 0.5)
    fields = [("text", _string(rng)), ("username", username)]
    if rng.random() < 0.3:
        fields.append(("timeout", str(rng.randrange(20, 5000))))
    if rng.random() < 0.1:
        fields.append(("delay", rng.choice(("0", "0.0", "-0", "1.5", "1e-9", "2592000", "null"))))
    if rng.random() < 0.08:
        # Lengths around the limits of a text and of a body.
        fields[0] = (
            "text",
            '"%s"' % ("x" * rng.choice((2047, 2048, 2049, 4000, 4050, 4100, 6000))),
        )
    if is_good:
        if rng.random() < 0.2:
            fields.append((rng.choice(_OTHERS[:7]), rng.choice(_VALUES[:12])))
        rng.shuffle(fields)
        return obj(rng, fields).encode("utf-8")
    for _ in range(rng.randrange(1, 3)):
        at = rng.randrange(len(fields))
        match rng.randrange(6):
            case 0 | 1:
                fields[at] = (fields[at][0], value(rng))
            case 2:
                del fields[at]
                if not fields:
                    break
            case 3:
                fields.insert(at, (rng.choice((*_NAMES, *_OTHERS)), value(rng)))
            case 4:
                fields.append((fields[at][0], rng.choice((fields[at][1], value(rng)))))
            case _:
                long = rng.choice((60, 127, 128, 129, 300, 2047, 2048, 2049, 5000))
                letter = rng.choice(("x", "\u00e9", "\U0001f600", "\\n", "\\u00e9"))
                fields[at] = (fields[at][0], f'"{letter * long}"')
    data = obj(rng, fields).encode("utf-8", "surrogatepass")
    return damage(rng, data)


def damage(rng: random.Random, data: bytes) -> bytes:
    """Return the same bytes, in one case of four damaged."""
    match rng.randrange(12):
        case 0 | 1:
            return mutate(rng, data, rng.randrange(1, 4))
        case 2:
            return rng.choice(
                (
                    b"",
                    b" ",
                    b"null",
                    b"[]",
                    b"{}",
                    b'"x"',
                    b"7",
                    b"[" * 3000,
                    b"\xef\xbb\xbf" + data,
                )
            )
        case _:
            return data


def batch(rng: random.Random, names: Sequence[str], most: int) -> bytes:
    """Return a batch: an array, or one message per line; sometimes more than are allowed."""
    count = rng.choice((0, 1, 2, 3, 5, most - 1, most, most + 1, 2 * most))
    make: Callable[[], bytes] = lambda: message(  # noqa: E731
        rng, rng.choice(names), rng.random() < 0.7 or None
    )
    items = [make() for _ in range(count)]
    if rng.random() < 0.1 and items:
        items[rng.randrange(len(items))] = value(rng).encode("utf-8", "surrogatepass")
    if rng.random() < 0.5:
        data = b"[" + b",".join(items) + b"]"
    else:
        end = rng.choice((b"\n", b"\n", b"\r\n", b"\n\n"))
        flat = [item.replace(b"\n", b" ") if rng.random() < 0.95 else item for item in items]
        data = end.join(flat) + rng.choice((b"", end))
    return damage(rng, data)


def about_a_lease(rng: random.Random) -> bytes:
    """Return the body of a lease operation, mostly for an unknown lease."""
    fields = [("lease", rng.choice(('"0123abcd"', f'"{"a" * 32}"', value(rng))))]
    if rng.random() < 0.5:
        fields.append(("ids", rng.choice(('["1", "2"]', "[]", "null", "[1]", value(rng)))))
    if rng.random() < 0.5:
        fields.append(("ttl", rng.choice(("1", "0.5", "30", "1e9", value(rng)))))
    if rng.random() < 0.5:
        fields.append(("delay", rng.choice(("0", "0.5", "60", "1e9", value(rng)))))
    rng.shuffle(fields)
    return damage(rng, obj(rng, fields).encode("utf-8", "surrogatepass"))
