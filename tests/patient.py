"""Run `tokenweir` with longer bounds on a decision, on reading a body and on Redis than its settings allow.

A decision that takes longer than `reservation.decision_timeout_s` is a 503, and 0.5 s is the most that can be set. On a
machine without free processor time any request may take longer. Tests that are about something else start the
processor with this script, so that none of their requests is refused for that.
"""

from functools import partial

from extproc import app
from extproc import serve as serving
from extproc.cli import main
from extproc.serve import serve
from extproc.stores.redis import RedisOptions
from extproc.workers.pool import PoolOptions

DECISION_S = 30.0
REDIS_S = 30.0


def serve_patiently(settings):
    """Serve with a bound of `DECISION_S` on each decision, and of more on reading a body."""
    reservation = settings.reservation.model_copy(update={"decision_timeout_s": DECISION_S})
    server = settings.server.model_copy(update={"message_timeout_s": 2 * DECISION_S})
    return serve(settings.model_copy(update={"reservation": reservation, "server": server}))


if __name__ == "__main__":
    assert app.RedisOptions is RedisOptions
    assert app.PoolOptions is PoolOptions
    serving.serve = serve_patiently
    app.RedisOptions = partial(
        RedisOptions, connect_timeout_s=REDIS_S, command_timeout_s=REDIS_S, batch_timeout_s=REDIS_S
    )
    app.PoolOptions = partial(PoolOptions, job_s=DECISION_S, start_s=REDIS_S)
    main()
