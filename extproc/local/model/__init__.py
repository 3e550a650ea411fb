"""Serve a sample model: no weights, but the answers, errors and token counts of a real one.

It speaks the APIs of OpenAI, Anthropic and KServe in the dialect of vLLM, and counts with the Tekken tokenizer. So
demos and system tests have an upstream with realistic usage figures to compare with. Two headers of a request
change its behaviour: `FAULT_HEADER` selects a fault, and `USAGE_HEADER` the details of usage.

Run it with ``python -m extproc.local.model`` or build the app in-process with :class:`SampleModel`.
"""

from extproc.local.model.details import USAGE_HEADER
from extproc.local.model.faults import FAULT_HEADER, Fault
from extproc.local.model.ledger import Ledger
from extproc.local.model.listener import running, serve
from extproc.local.model.server import SampleModel

__all__ = ["FAULT_HEADER", "USAGE_HEADER", "Fault", "Ledger", "SampleModel", "running", "serve"]
