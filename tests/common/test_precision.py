"""The order of precisions, and their names."""

import json

from common.precision import Precision, fastest_precision, least_exact


def test_precisions_are_written_as_their_names():
    assert f"{Precision.FLOAT32} {Precision.FLOAT16!s}" == "float32 float16"
    assert json.dumps({"precision": Precision.BFLOAT16}) == '{"precision": "bfloat16"}'
    assert "bfloat16" in {Precision.BFLOAT16} and Precision("float32") is Precision.FLOAT32


def test_the_least_exact_precision():
    assert least_exact([Precision.FLOAT32, Precision.BFLOAT16, Precision.FLOAT16]) == "bfloat16"
    assert least_exact([Precision.FLOAT32, Precision.FLOAT16]) == "float16"


def test_what_auto_tries_first():
    assert (fastest_precision(on_gpu=True), fastest_precision(on_gpu=False)) == (
        "float16",
        "float32",
    )
