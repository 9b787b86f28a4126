"""A local Forager with made-up datasets, and pages of it in a real headless Chromium."""

import uuid
from contextlib import ExitStack

import pytest

from testing.browser import MISSING, chromium, chromium_path
from testing.servers.processes import LONGEST_S
from tests.local_forager import screen
from tests.local_forager.page_server import COPY, FAILED, NAMES, SHAPES, page_server


@pytest.fixture(autouse=True)
def storage(emulator_url, monkeypatch):
    """The storage emulator, in the environment of each test; fixtures that live longer set it."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator_url)


@pytest.fixture(scope="session")
def server(emulator_url, tmp_path_factory):
    """A server for all tests, for which the 80 images of its dataset "d" are many.

    "d" is read only; tests that write publish their own.
    """
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", emulator_url)
            service = page_server(tmp_path_factory.mktemp("page"), "--exact_rows", "50")
            server = stack.enter_context(service)
            server.publish("d", NAMES, 60, failed={FAILED}, same={COPY: 2}, shapes=SHAPES)
        server.label("d", ["t00", "t01", "t02", "v00"], "bird")
        server.label("d", ["t03"], "bird", "NEGATIVE")
        server.label("d", ["t01", "t07"], "sky", "far away")
        yield server


@pytest.fixture
def dataset_name():
    """A dataset name that no other test uses."""
    return f"d-{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def browser():
    """One browser for the tests of a module; skipped where there is no Playwright or no Chromium.

    Not for the session: Playwright keeps an event loop running in this thread until the browser
    ends, and tests of other modules call asyncio.run.
    """
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install playwright to test the page"
    )
    if chromium_path() is None:
        pytest.skip(MISSING)
    playwright.expect.set_options(timeout=1000 * LONGEST_S)
    with chromium() as browser:
        yield browser


@pytest.fixture
def tabs(browser):
    """Open a page: tabs(url, **options of the browser context). All filters are unfolded.

    After the test: no console message, no error, no dialog, no request that left this machine.
    """
    contexts, problems = [], []

    def watch_request(request):
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            problems.append(f"left the machine: {request.url}")

    def watch_console(message):
        if message.type in ("error", "warning"):
            problems.append(f"{message.text} ({message.location['url']})")

    def open_page(url, more_filters=True, **options):
        context = browser.new_context(**({"viewport": {"width": 1200, "height": 800}} | options))
        if more_filters:
            unfold = "localStorage.setItem('forager-more-filters', 'yes')"
            context.add_init_script(f"try {{ {unfold} }} catch {{}}")  # an empty page has none
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * LONGEST_S)
        page.on("console", watch_console)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"dialog {dialog.message}"))
        page.on("request", watch_request)
        page.goto(url)
        page.problems = problems
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def opened(server, tabs):
    """Open a page of a dataset and wait until it is complete: opened(query, **options)."""

    def open_page(query="", dataset="d", **options):
        page = tabs(f"{server.url}/{dataset}{query}", **options)
        screen.complete(page)
        return page

    return open_page
