"""The page while the server does not answer, and after it is back."""

from tests.local_forager import screen
from tests.local_forager.page_server import fetch
from tests.local_forager.screen import expect
from tests.stand_in import Rule, StandIn


def test_page_goes_on_when_the_server_is_back(server, tabs):
    with StandIn(server.url) as front:
        page = tabs(f"{front.url}/d")
        screen.total(page, "80 images")
        page.get_by_role("button", name="Select all").click()
        front.rules = [Rule("", "reset")]
        page.get_by_role("link", name="Validation 20").click()
        away = page.locator("#offline")
        expect(away).to_be_visible()
        expect(away).to_contain_text("does not answer")
        expect(page.locator(".selected-count")).to_have_text("80 selected")
        page.evaluate("document.querySelector('.cell a').click()")
        expect(page.get_by_role("dialog")).to_contain_text("This image cannot be shown")
        front.rules = []
        expect(away).to_be_hidden()
        expect(page.get_by_role("dialog")).to_contain_text("t00.jpg")  # asked for again by itself
        page.keyboard.press("Escape")
        screen.total(page, "20 of 80 images")
        expect(page.locator(".selected-count")).to_have_text("80 selected")
        assert all("ERR_" in problem for problem in page.problems)  # of requests meanwhile
        page.problems.clear()
        page.close()  # before its server: the page asks for new labels


def test_address_with_a_slash_at_its_end(server):
    status, _, body = fetch(f"{server.url}/d/?split=val")
    assert status == 200 and b"/static/app.js" in body
