import pytest
from redis.asyncio.connection import SSLConnection

from extproc.stores.redis_addresses import parse_address
from extproc.stores.urls import StoreURL, masked, mongo_url, redis_url

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
        ("redis+cluster://u:hunter2@a:1,b:2", "redis+cluster://u:***@a:1,b:2"),
        (
            "rediss+sentinel://u:hunter2@a:1,b:2/m/0?sentinel_password=hunter2",
            "rediss+sentinel://u:***@a:1,b:2/m/0?sentinel_password=***",
        ),
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
    "redis+cluster://",
    "redis+cluster://h:1,",
    "redis+cluster://h:hunter2",
    "redis+cluster://h:1/1",  # a Cluster has no databases
    "redis+cluster://h:1?db=1",
    "redis+cluster://h?hunter2=1",
    "rediss+cluster://h?ssl_cert_reqs=hunter2",
    "redis+sentinel://u:hunter2@h",  # no name of a master
    "redis+sentinel://h/",
    "redis+sentinel://h/m/hunter2",
    "redis+sentinel://h/m?sentinel_hunter2=1",
    "redis+hunter2://h",
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
        (redis_url, "redis+cluster://u:p%40@a:1,[::1]:2,c"),
        (redis_url, "rediss+cluster://a:1?ssl_cert_reqs=none"),
        (redis_url, "redis+sentinel://u:p@a:1,b/my%20master/2?sentinel_username=s&sentinel_password=p%3A"),
        (redis_url, "rediss+sentinel://a/m"),
        (redis_url, "memory://"),
        (mongo_url, "mongodb://u:p%2F@a:1,b:2/?replicaSet=rs0&tls=true"),
        # No SRV record is looked up: the name would not be found.
        (mongo_url, "mongodb+srv://u:p@cluster.invalid/?retryWrites=true"),
        (mongo_url, "memory://"),
    ],
)
def test_a_url_that_the_driver_can_use_stays_as_it_is(check, url):
    assert check(StoreURL(url)).get_secret_value() == url


def test_the_parts_of_a_sentinel_url_come_apart_as_they_are_meant():
    url = "rediss+sentinel://u:p%40@a:1,[::1]/my%20master/2?sentinel_username=s&sentinel_password=p%3Ay&client_name=z"
    address = parse_address(url)
    assert address.hosts == (("a", 1), ("::1", 26379))
    assert address.service == "my master"
    login = {name: address.options[name] for name in ("username", "password", "db", "client_name")}
    assert login == {"username": "u", "password": "p@", "db": 2, "client_name": "z"}
    sentinels = {name: address.sentinel_options.get(name) for name in login}
    assert sentinels == {"username": "s", "password": "p:y", "db": None, "client_name": "z"}
    for options in (address.options, address.sentinel_options):
        assert options["connection_class"] is SSLConnection


def test_sentinels_get_nothing_of_the_login_of_their_servers():
    address = parse_address("redis+sentinel://u:hunter2@a/m?sentinel_password=x")
    assert address.sentinel_options == {"password": "x"}
    assert parse_address("redis+sentinel://u:hunter2@a/m").sentinel_options == {}
