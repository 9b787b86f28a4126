"""The page while the server does not answer, and after it is back."""

import contextlib

from testing.servers.processes import local_forager
from tests.local_forager import screen
from tests.local_forager.page_server import fetch, page_server
from tests.local_forager.screen import expect


def test_page_goes_on_when_the_server_is_back(emulator, tmp_path, tabs):
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(page_server(tmp_path))
        server.publish("d", 12)
        page = tabs(f"{server.url}/d")
        screen.total(page, "12 images")
        page.get_by_role("button", name="Select all").click()
        server.process.terminate()
        server.process.wait()
        page.get_by_role("link", name="Validation 0").click()
        away = page.locator("#offline")
        expect(away).to_be_visible()
        expect(away).to_contain_text("does not answer")
        expect(page.locator(".selected-count")).to_have_text("12 selected")
        page.evaluate("document.querySelector('.cell a').click()")
        expect(page.get_by_role("dialog")).to_contain_text("This image cannot be shown")
        port = int(server.url.rpartition(":")[2])
        options = tmp_path, tmp_path / "log-2", "--bucket", server.index
        stack.enter_context(local_forager(*options, port=port))
        expect(away).to_be_hidden()
        expect(page.get_by_role("dialog")).to_contain_text("0.jpg")  # asked for again by itself
        page.keyboard.press("Escape")
        screen.total(page, "0 of 12 images")
        expect(page.locator(".selected-count")).to_have_text("12 selected")
        assert all("ERR_" in problem for problem in page.problems)  # of requests meanwhile
        page.problems.clear()
        page.close()  # before its server: the page asks for new labels


def test_address_with_a_slash_at_its_end(server):
    status, _, body = fetch(f"{server.url}/d/?split=val")
    assert status == 200 and b"/static/app.js" in body
