"""The key of a bucket can be read again."""

import pytest

from extproc.core.quota.limits import Bucket, BucketName, Interval, Limit, Mode, Scope, Unit, Window, read_key
from extproc.core.request.endpoints import Endpoint

INTERVAL = Interval(1_772_582_400, 1_772_668_800)
ODD = "a:b~c=d/é%3A*"


@pytest.mark.parametrize(
    ("limit", "parts"),
    [
        (Limit(Scope.TENANT, Window.MONTH, 5), ()),
        (Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 5, Unit.REQUESTS), (ODD,)),
        (Limit(Scope.SERVICE_ACCOUNT_IP, Window.HOUR, 5, mode=Mode.STRICT, shadow=True), ("", "2001:db8::/64")),
        (Limit(Scope.TENANT, Window.WEEK, 5, model=ODD), ()),
        (
            Limit(
                Scope.MODEL, Window.MINUTE, 5, Unit.INPUT_TOKENS, model="m-*", shadow=True,
                endpoints=(Endpoint.COMPLETIONS, Endpoint.MESSAGES),
            ),
            (ODD,),
        ),
        (Limit(Scope.CLIENT_IP, Window.MINUTE, 5, Unit.REQUESTS), ("192.0.2.1", "tokenweir", "route", ODD)),
    ],
)  # fmt: skip
def test_the_name_of_a_bucket_is_what_made_its_key(limit, parts):
    assert read_key(Bucket(limit, parts, INTERVAL).key) == BucketName(
        limit.scope,
        limit.window,
        limit.unit,
        limit.model,
        tuple(endpoint.value for endpoint in limit.endpoints),
        limit.shadow,
        INTERVAL.start,
        parts,
    )


@pytest.mark.parametrize("text", ["", "k", "a:1:x", "tenant:day:x:", "tenant:year:1:", "tenant:day~cows:1:"])
def test_another_text_is_no_key(text):
    assert read_key(text) is None
