"""Damage of a file of lines, as by a failing disk or an editor."""


def damaged_in_some_way(data, source):
    """The bytes of a journal after one or two kinds of damage."""
    for _ in range(source.choice([1, 1, 2])):
        if not data:
            break
        lines = data.splitlines(keepends=True)
        start = source.randrange(len(data) + 1)
        match source.randrange(7):
            case 0:
                data = data[:start]
            case 1:
                data = b"".join(lines[: source.randrange(len(lines) + 1)])
            case 2:
                lines.pop(source.randrange(len(lines)))
                data = b"".join(lines)
            case 3:
                data = data[:start] + source.randbytes(1) + data[start + 1 :]
            case 4:
                data = data[:start] + bytes(min(len(data) - start, 200)) + data[start + 200 :]
            case 5:
                one, other = source.randrange(len(lines)), source.randrange(len(lines))
                lines[one] = lines[other]
                data = b"".join(lines)
            case 6:
                source.shuffle(lines)
                data = b"".join(lines)
    return data
