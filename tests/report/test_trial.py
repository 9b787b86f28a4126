"""--trial: a few images are embedded, nothing is uploaded, and the rest is forecast."""

import json
import signal
from pathlib import Path

import pytest

from dataset.arrays import BYTES_PER_ROW, DIMENSIONS
from preflight.checks import WORK_BYTES_PER_ROW
from report.forecast import (
    EXAMPLES,
    Pace,
    cost,
    forecast,
    index_requests,
    measured_pace,
    read_prices,
)
from report.trial import describe_sizes, spread
from storage.pace import least_seconds
from storage.uploads import part_count
from tests.harness import TRAIN, VAL, ended, wait_for
from tests.report.test_report import DOWNLOAD, assert_documented, documented, fields
from tests.stand_in import Rule


def test_a_trial_embeds_a_few_images_and_leaves_only_its_report(fresh, storage):
    fresh.storage.put(fresh.images, "train/zz.jpg", b"no image")
    prices = fresh.directory / "prices.json"
    prices.write_text('{"machine_per_hour": 36000, "currency": "EUR", "date": "today"}')
    # Neither a server nor an index bucket is needed.
    options = "--bucket", "no-such-bucket", "--prices", str(prices), "--trial", "13"
    done = fresh.run(*options, storage=storage, server="")
    fresh.storage.delete(fresh.images, "train/zz.jpg")
    assert done.exit_code == 0, done.stderr
    assert not [asked for asked in storage.asked if asked.method != "GET"]
    downloads = {asked.path for asked in storage.requests(DOWNLOAD)}
    assert len(downloads) == 13
    assert [path.name for path in fresh.work.iterdir()] == ["trial.json"]
    report = fresh.report("trial.json")
    assert_documented(report)
    of_trials = {path for path in documented() if path.startswith("trial.")}
    assert of_trials <= {path for path, _ in fields(report)}
    assert report["outcome"] == "trial" and report["message"] + "\n" == done.stdout
    trial, found, counts = report["trial"], report["trial"]["forecast"], report["counts"]
    images = TRAIN + 1 + VAL
    assert (counts["images"], counts["training"], counts["validation"]) == (13, 10, 3)
    assert counts["failed"] == 1 and found["failed"] == round(images / 13)
    assert trial["sizes"]["median"] == [40, 30] and trial["sizes"]["different"] == 1
    assert found["images"] == images and found["disk_bytes"] == images * WORK_BYTES_PER_ROW
    assert found["read_bytes"] > counts["size"] > 0
    assert found["index_bytes"] > images * BYTES_PER_ROW and found["thumbnail_bytes"] > 0
    assert found["class_b"] >= images and found["class_a"] >= images - found["failed"]
    assert trial["cost"]["machine"] == pytest.approx(found["seconds"] * 10)
    for words in (
        f"A trial of 13 of {images} images (10 training, 3 validation). Nothing was uploaded",
        f"Forecast for {images} images:",
        "1: not an image in a supported format",
        " EUR once: Class A 0.00,",
        "class_a_per_1000, class_b_per_1000, read_per_gb, stored_per_gb_month: examples of",
        "From fewer than 50 images, this is a rough forecast.",
    ):
        assert words in done.stdout


@pytest.mark.parametrize("option", ["--trial", "--dry_run"])
def test_interrupted_where_nothing_is_kept(fresh, storage, servers, option):
    storage.rules = [Rule(r"GET /storage/.*prefix=train", "hold")]
    process = fresh.start(option, storage=storage)
    wait_for(lambda: storage.counts["hold"])
    process.send_signal(signal.SIGINT)
    stopped = ended(process)
    assert stopped.exit_code == 130
    assert stopped.stderr.endswith(
        "Interrupted: nothing of a --trial or a --dry_run is kept, so the same command begins "
        "again.\n"
    )


def test_an_ingest_after_a_trial_and_a_trial_after_an_ingest(fresh, emulator_url, servers):
    assert fresh.run("--trial").exit_code == 0
    done = fresh.run("--json")
    assert done.exit_code == 0, done.stderr
    before = fresh.left_behind()
    again = fresh.run("--trial", "2", "--json")
    assert json.loads(again.stdout)["counts"]["embedded_now"] == 2
    assert fresh.left_behind() == before
    assert fresh.report() == json.loads(done.stdout)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--trial", "--dry_run"], "leave out --dry_run."),
        (["--trial", "9", "--reuse", "x", "--restart"], "leave out --restart, --reuse."),
        (["--trial", "9", "--engine", "ray"], "leave out --engine ray."),
        (["--prices", "x"], "--prices goes with --trial."),
        (["--trial", "0"], "'0' is no number of images: write --trial 200"),
        (["--trial", "all"], "'all' is no number of images: write --trial 200"),
    ],
)
def test_options_that_do_not_go_together(fresh, options, said):
    done = fresh.run(*options)
    assert done.exit_code == 2 and said in done.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read (No such file or directory): correct the path, or leave it out"),
        ("class_a: 1", 'has no prices: write a JSON object of numbers from 0, such as {"class_a_'),
        ("[1]", "has no prices: write a JSON object"),
        *(
            (f"{{{entry}}}", f"{entry} is no price: write a JSON object of numbers from 0")
            for entry in (
                *('"class_a": 1', '"read_per_gb": -1', '"read_per_gb": "1"'),
                *('"read_per_gb": true', '"read_per_gb": NaN'),
            )
        ),
    ],
)
def test_prices_that_are_none(tmp_path, content, said):
    path = tmp_path / "prices.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(Exception, match="--prices ") as error:
        read_prices(path)
    assert said in error.value.message


def test_the_examples_are_a_file_of_prices(tmp_path):
    Path(tmp_path, "p").write_text(json.dumps(EXAMPLES))
    assert read_prices(tmp_path / "p").values == EXAMPLES
    assert read_prices(tmp_path / "p").examples == ()


def test_the_pace_is_apart_from_the_start():
    """5 images a second, after 30 s in which the first one was computed."""
    finished = [130 + number / 5 for number in range(200)]
    pace = measured_pace(100.0, finished)
    assert pace.images_per_s == pytest.approx(5)
    assert pace.startup_s == pytest.approx(29.8)
    assert measured_pace(0.0, [2.0]).images_per_s == 0.5
    # The first tenth may be as slow as it likes.
    slow = [*(100 + 3 * number for number in range(20)), *(160 + n / 5 for n in range(180))]
    assert measured_pace(100.0, slow).images_per_s == pytest.approx(5)


@pytest.mark.parametrize(
    ("training", "validation", "images", "expected"),
    [
        (8, 2, 5, ([1, 3, 5, 7], [9])),
        (1000, 1, 4, ([166, 500, 833], [1000])),
        (2, 1, 100, ([0, 1], [2])),
        (3, 0, 2, ([0, 2], [])),
        (0, 3, 1, ([], [1])),
    ],
)
def test_a_sample_is_spread_over_both_splits(training, validation, images, expected):
    assert spread(training, validation, images) == expected


def test_a_forecast_follows_from_images_pages_and_arrays():
    images = 1_000_001
    found = forecast(images, 10**11, Pace(10, 500), before_s=20, failed=1, thumbnail_bytes=10**10)
    parts = sum(part_count(images * width * 4) for width in DIMENSIONS.values())
    # 1,001 pages four times, a thumbnail per image, the parts, three arrays and five other files.
    assert found.class_a == 4 * 1001 + 10**6 + parts + 8
    assert found.class_b == images + 2 * 8 + parts
    assert found.startup_s == 30
    assert found.seconds == pytest.approx(20 + 10 + images / 500 + found.upload_s)
    assert index_requests([1000] * 3) == (8, 16)
    assert index_requests([1 << 30, 33 << 20, 1000]) == (8 + 32 + 3, 16 + 32 + 3)
    stored = (found.thumbnail_bytes + found.index_bytes) / 1e9
    assert cost(found, read_prices(None)) == pytest.approx(
        {
            "class_a": found.class_a * 0.005 / 1000,
            "class_b": found.class_b * 0.0004 / 1000,
            "read": 12,
            "machine": found.seconds / 3600,
            "stored_month": stored * 0.02,
        }
    )


def test_sizes_are_ordered_by_their_pixels():
    assert describe_sizes([]) is None
    sizes = {"smallest": (1, 1), "median": (2, 3), "largest": (9, 9), "different": 3}
    assert describe_sizes([(2, 3), (9, 9), (1, 1), (2, 3)]) == sizes


def test_a_fresh_prefix_limits_only_what_is_fast():
    assert least_seconds(1000) == pytest.approx(1, rel=0.01)
    # 1,000 per second at first, twice as many after 20 minutes: 1.44 times 1.2 million in them.
    assert least_seconds(1_731_234) == pytest.approx(1200, rel=0.001)
