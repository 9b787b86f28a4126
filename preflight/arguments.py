"""What can be judged from the command line alone, before any request and before torch."""

from __future__ import annotations

from common.errors import Findings, ServerError
from common.names import dataset_name_error
from common.terminal import printable
from engine.loading import ModelLoader
from forager.addresses import check_server_url
from preflight.checks import check_paths
from preflight.request import Request
from preflight.sources import check_reuse


def check_arguments(request: Request, loader: ModelLoader) -> None:
    """Check names, paths, addresses, files that must be there, and combinations of options.

    Raises:
        IngestError: everything that is wrong, in one message.
    """
    findings = Findings()
    if error := dataset_name_error(request.name):
        findings.add(error)
    check_paths(findings, request.train_path, request.val_path)
    if not request.server_url and not request.trial:
        findings.add("SERVER_URL is not set: write SERVER_URL=http://HOST:PORT before python.")
    elif request.server_url:
        try:
            check_server_url(request.server_url)
        except ServerError as error:
            findings.add(error.message)
    if request.write_renames and not request.write_renames.absolute().parent.is_dir():
        findings.add(
            f"--write_renames {printable(str(request.write_renames))}: there is no such directory."
        )
    check_reuse(findings, request)
    for sentence in loader.missing_files():
        findings.add(sentence)
    findings.raise_if_any()
