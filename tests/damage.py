"""Damage of a file, as by a failing disk or an editor."""

BLOCK_BYTES = 512  # what a disk loses or repeats, at least


def damaged_in_some_way(data, source):
    """The bytes of a file after one or two kinds of damage."""
    for _ in range(source.choice([1, 1, 2])):
        if not data:
            break
        blocks = [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]
        one, other = source.randrange(len(blocks)), source.randrange(len(blocks))
        start = source.randrange(len(data) + 1)
        match source.randrange(7):
            case 0:
                data = data[:start]
            case 1:
                data = b"".join(blocks[:one])
            case 2:
                data = b"".join(blocks[:one] + blocks[one + 1 :])
            case 3:
                data = data[:start] + source.randbytes(1) + data[start + 1 :]
            case 4:
                data = data[:start] + bytes(min(len(data) - start, 200)) + data[start + 200 :]
            case 5:
                blocks[one] = blocks[other]
                data = b"".join(blocks)
            case 6:
                source.shuffle(blocks)
                data = b"".join(blocks)
    return data
