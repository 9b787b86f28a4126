"""A Forager server that answers as a script says."""

from tests.stand_in import Answer, StandIn

DJANGO_404 = (404, "<html><title>Page not found at /api/x</title></html>")


class Script(StandIn):
    """Answers of a server by "METHOD route": a list is used up, but for its last, which stays.

    An answer is a status and text or JSON, what else a rule of StandIn may do, or a function that
    is called with the request.
    """

    def __init__(self, answers):
        super().__init__(None, self.answer)
        self.answers = {key: list(value) for key, value in answers.items()}

    def answer(self, asked):
        left = self.answers.get(key_of(asked), [DJANGO_404])
        what = left.pop(0) if len(left) > 1 else left[0]
        what = what(asked) if callable(what) else what
        return Answer(*what) if isinstance(what, tuple) else what

    @property
    def requests(self):
        return [(key_of(asked), asked.body) for asked in self.asked]

    def count(self, key):
        return [asked for asked, _ in self.requests].count(key)


def key_of(asked):
    return f"{asked.method} {asked.path.partition('?')[0].removeprefix('/api/')}"
