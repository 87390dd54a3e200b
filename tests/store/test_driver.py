"""Both drivers behave alike, and a bad connection string is explained without its password."""

import pytest
from pymongo.errors import ServerSelectionTimeoutError

from workers.store.driver import (
    BadConnectionString,
    Document,
    Driver,
    _reason,
    aggregate,
    close_client,
    hello,
    open_client,
    start_session,
)

BOTH = pytest.mark.parametrize("named", ["pymongo", "motor"])


@BOTH
async def test_both_drivers_answer_alike(mongo_uri: str, database: str, named: Driver) -> None:
    client = open_client(named, mongo_uri)
    numbers = client[database]["numbers"]
    await numbers.insert_many([{"_id": number} for number in range(5)])
    pipeline: list[Document] = [{"$match": {"_id": {"$gte": 2}}}, {"$sort": {"_id": 1}}]
    assert await aggregate(numbers, pipeline) == [{"_id": 2}, {"_id": 3}, {"_id": 4}]
    assert await aggregate(numbers, pipeline, hint="_id_") == [{"_id": 2}, {"_id": 3}, {"_id": 4}]
    answer = await hello(client)
    assert answer["isWritablePrimary"]
    assert int(answer["localTime"]) > 1_700_000_000_000, "milliseconds since 1970"
    session = await start_session(client)
    assert await numbers.count_documents({}, session=session) == 5
    await session.end_session()
    await close_client(client)


@BOTH
async def test_the_string_cannot_weaken_a_guarantee(mongo_uri: str, named: Driver) -> None:
    weak = "w=1&journal=false&retryWrites=false&readPreference=secondary"
    client = open_client(named, f"{mongo_uri}&{weak}")
    assert client.write_concern.document == {"w": "majority", "j": True}
    assert client.options.retry_writes
    assert client.read_preference.name == "Primary"
    await close_client(client)


@BOTH
@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("postgres://db", "must begin with"),
        ("mongodb://db:99999", "between 0 and 65535"),
        ("mongodb://db/?w=1&tlsCAFile=/no/such/file", "'/no/such/file' No such file or directory"),
        ("mongodb://bob:s3cret@x@db", "must be escaped .*: / as %2F, @ as %40"),
        ("mongodb://bob:s3cret/x@db", "must be escaped .*: / as %2F, @ as %40"),
        ("mongodb://db/?datetime_conversion=never", "an option cannot have the value 'never'"),
        ("mongodb://db/?authMechanism=GSSAPI", "GSSAPI requires a username"),
        ("mongodb://bob:s3cret@db/?tls=yes", "tls must be 'true' or 'false'"),
        ("mongodb://db/?maxPoolSize=many", "maxpoolsize must be an integer"),
        ("mongodb://db/?tls=true&tls=true", "Duplicate URI option 'tls'"),
        ("mongodb://bob:s3cret@db/?noSuchOption=1", "Unknown option: nosuchoption"),
    ],
)
async def test_a_bad_string_is_explained(uri: str, reason: str, named: Driver) -> None:
    with pytest.raises(BadConnectionString, match=reason) as raised:
        open_client(named, uri)
    assert "s3cret" not in str(raised.value)


def test_a_reason_that_quotes_the_string_is_hidden() -> None:
    shown = _reason(ValueError("cannot parse bob:s3cret@db"))
    assert shown.startswith("a name or password in it must be percent-encoded")


@BOTH
async def test_an_old_name_of_an_option_is_accepted(mongo_uri: str, named: Driver) -> None:
    client = open_client(named, f"{mongo_uri}&ssl=false")
    assert (await hello(client))["isWritablePrimary"]
    await close_client(client)


async def test_a_database_that_is_gone_raises_in_time() -> None:
    client = open_client("pymongo", "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=50")
    with pytest.raises(ServerSelectionTimeoutError):
        await hello(client)
    await close_client(client)
