"""A sample model server: no weights, but the answers, errors and token counts of a real one.

It speaks the APIs of OpenAI, Anthropic and KServe in the dialect of vLLM and counts with the Tekken
tokenizer, so that demos and system tests have an upstream whose usage figures are worth checking
against. Two headers of a request change what it does: `FAULT_HEADER` names what goes wrong, and
`USAGE_HEADER` which details usage tells.

Run it with ``python -m extproc.local.model`` or build the app in-process with :class:`SampleModel`.
"""

from extproc.local.model.details import USAGE_HEADER
from extproc.local.model.faults import FAULT_HEADER, Fault
from extproc.local.model.ledger import Ledger
from extproc.local.model.listener import running, serve
from extproc.local.model.server import SampleModel

__all__ = ["FAULT_HEADER", "USAGE_HEADER", "Fault", "Ledger", "SampleModel", "running", "serve"]
