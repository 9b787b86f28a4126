"""The picture of a terminal: what of a command's output is left on it."""

from testing.browser import page_of


def test_the_last_state_of_a_progress_bar_is_shown():
    page = page_of("$ python ingest.py birds\n  0%|  |\r 50%|# |\r100%|##|\ndone <1 s\n")
    assert page.endswith("<pre><b>$ python ingest.py birds</b>\n100%|##|\ndone &lt;1 s</pre>")
