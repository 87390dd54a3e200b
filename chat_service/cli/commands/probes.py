"""`chat healthcheck` and `chat mongo-uri`: for containers and scripts."""

import os
from http.client import HTTPConnection, HTTPException

import click

from chat_service.cli.exit_codes import ExitCode, Failed
from chat_service.cli.options import EPILOG, with_settings
from config import Settings


@click.command(epilog=EPILOG)
@with_settings
def healthcheck(settings: Settings) -> int:
    """Exit 0 where the service on this port is ready, else 1.

    For containers, which have no curl.

    \b
    Examples:
      chat healthcheck
      chat healthcheck --port 9000
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    # Straight to the port: urllib would ask the proxy that the environment names.
    connection = HTTPConnection(host, settings.port, timeout=3)
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except (OSError, HTTPException, UnicodeError) as error:
        raise Failed(ExitCode.NOTHING, f"not ready: {error or type(error).__name__}") from None
    finally:
        connection.close()
    if status != 200:
        raise Failed(ExitCode.NOTHING, f"not ready: /readyz answers {status}")
    return ExitCode.DONE


@click.command(epilog=EPILOG)
@with_settings
def mongo_uri(settings: Settings) -> int:
    """Print the connection string of the database in use, for mongosh and the like.

    \b
    Examples:
      mongosh "$(chat mongo-uri)"
      chat mongo-uri --data-dir /var/lib/chat
    """
    if settings.mongo_uri:
        click.echo(settings.mongo_uri)
        return ExitCode.DONE
    # It loads the driver.
    from workers.mongod.embedded import socket_path, uri_of

    data_dir = settings.data_dir.absolute()
    # os.path's, since a directory that may not be searched is no error there.
    if not os.path.exists(socket_path(data_dir)):
        raise Failed(
            ExitCode.DATABASE,
            f"no private mongod runs on {settings.data_dir}; start the service first",
        )
    click.echo(uri_of(data_dir))
    return ExitCode.DONE
