import pytest

from extproc.store_urls import StoreURL, masked, mongo_url, redis_url

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://user:hunter2@h:6379/0", "redis://user:***@h:6379/0"),
        ("redis://:hunter2@h/0?db=1", "redis://:***@h/0?db=1"),
        ("rediss://u:hunt/er2@h:1", "rediss://u:***@h:1"),
        ("redis://u:a@hunter2@h", "redis://u:***@h"),
        ("redis://u:hunter2?x@h", "redis://u:***@h"),
        ("redis://hunter2@h", "redis://***@h"),
        ("redis://h?password=hunter2&db=1", "redis://h?password=***&db=1"),
        ("unix://u:hunter2@/run/redis.sock?db=0", "unix://u:***@/run/redis.sock?db=0"),
        ("mongodb://u:hunter2@a:1,b:2/?replicaSet=rs0", "mongodb://u:***@a:1,b:2/?replicaSet=rs0"),
        ("mongodb+srv://u:hunter2@cluster.example.com", "mongodb+srv://u:***@cluster.example.com"),
        ("mongodb://h/?tlsCertificateKeyFilePassword=hunter2", "mongodb://h/?tlsCertificateKeyFilePassword=***"),
        (
            "mongodb://h/?a=b&authMechanismProperties=AWS_SESSION_TOKEN:hunter2&tls=true",
            "mongodb://h/?a=b&authMechanismProperties=***&tls=true",
        ),
        ("memory://", "memory://"),
        ("hunter2", "***"),
        ("", "***"),
    ],
)
def test_a_url_is_shown_with_all_but_its_secrets(url, shown):
    assert masked(url) == shown
    for text in (repr(StoreURL(url)), str(StoreURL(url)), f"{StoreURL(url)}"):
        assert shown in text
        assert SECRET not in text


REFUSED_BY_REDIS = [
    "http://h",
    "hunter2",
    "redis://h:hunter2",
    "redis://h:99999",
    "redis://u:hunter2/x@h",
    "redis://h?hunter2=1",
    "redis://h?db=hunter2",
    "redis://[::1",
    "rediss://h?ssl_cert_reqs=hunter2",
]
REFUSED_BY_MONGO = [
    "redis://h",
    "hunter2",
    "mongodb://",
    "mongodb://h,",
    "mongodb://h:hunter2",
    "mongodb://u:hunter2/x@h",
    "mongodb://u:hunter2@x@h",
    "mongodb://h/?hunter2=1",
    "mongodb://h/?timeoutMS=hunter2",
    "mongodb://h/?tls=true&tlsCAFile=/nope/hunter2",
    "mongodb+srv://u:hunter2@a.example.com:1",
]


@pytest.mark.filterwarnings("ignore")  # what a process does with warnings decides nothing
@pytest.mark.parametrize(
    ("check", "url"),
    [(redis_url, url) for url in REFUSED_BY_REDIS] + [(mongo_url, url) for url in REFUSED_BY_MONGO],
)
def test_a_url_that_the_driver_could_not_use_is_refused_without_quoting_it(check, url):
    with pytest.raises(ValueError) as raised:
        check(StoreURL(url))
    assert SECRET not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize(
    ("check", "url"),
    [
        (redis_url, "redis://h"),
        (redis_url, "rediss://u:p%40@h:6380/2?socket_timeout=1"),
        (redis_url, "redis://[::1]:6379"),
        (redis_url, "unix:///run/redis.sock"),
        (redis_url, "memory://"),
        (mongo_url, "mongodb://u:p%2F@a:1,b:2/?replicaSet=rs0&tls=true"),
        # No SRV record is looked up: the name would not be found.
        (mongo_url, "mongodb+srv://u:p@cluster.invalid/?retryWrites=true"),
        (mongo_url, "memory://"),
    ],
)
def test_a_url_that_the_driver_can_use_stays_as_it_is(check, url):
    assert check(StoreURL(url)).get_secret_value() == url
