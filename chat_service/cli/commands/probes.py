"""`chat healthcheck` and `chat mongo-uri`: for containers and scripts."""

import os
import ssl
from http.client import HTTPConnection, HTTPException, HTTPSConnection

import click

from chat_service.cli.exit_codes import CommandError, ExitCode
from chat_service.cli.options import EPILOG, with_settings
from config import Settings


@click.command(epilog=EPILOG)
@with_settings
def healthcheck(settings: Settings) -> int:
    """Exit 0 if the service on this port is ready, and 1 otherwise.

    For containers without curl.

    \b
    Examples:
      chat healthcheck
      chat healthcheck --port 9000
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    # Connect directly: urllib would use a proxy from the environment.
    connection = (
        HTTPSConnection(host, settings.port, timeout=3, context=_unverified())
        if settings.tls_certificate
        else HTTPConnection(host, settings.port, timeout=3)
    )
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except (OSError, HTTPException, UnicodeError) as error:
        raise CommandError(
            ExitCode.NOTHING, f"not ready: {error or type(error).__name__}"
        ) from None
    finally:
        connection.close()
    if status != 200:
        raise CommandError(ExitCode.NOTHING, f"not ready: /readyz answered {status}")
    return ExitCode.DONE


def _unverified() -> ssl.SSLContext:
    """Return a context that accepts any certificate.

    The certificate has the name that clients use, and not this address. The request holds no
    secret, and goes to this machine's own address.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@click.command(epilog=EPILOG)
@with_settings
def mongo_uri(settings: Settings) -> int:
    """Print the connection string of the database in use, for tools such as mongosh.

    \b
    Examples:
      mongosh "$(chat mongo-uri)"
      chat mongo-uri --data-dir /var/lib/chat
    """
    click.echo(find_uri(settings))
    return ExitCode.DONE


def find_uri(settings: Settings) -> str:
    """Return the connection string of the database in use: the configured or the embedded one.

    Raise `CommandError` if the embedded one is not running.
    """
    if settings.mongo_uri:
        return settings.mongo_uri
    # Imported here because it loads the driver.
    from workers.mongod.embedded import socket_path, uri_of

    data_dir = settings.data_dir.absolute()
    # os.path.exists returns False for a directory that may not be searched; Path.exists raises.
    if not os.path.exists(socket_path(data_dir)):
        raise CommandError(
            ExitCode.DATABASE,
            f"no embedded MongoDB is running in {settings.data_dir}; if the service uses another "
            "directory, add --data-dir; if it does not run, start it first",
        )
    return uri_of(data_dir)
