# The image of the service. Its database is a MongoDB replica set, named by CHAT_MONGO_URI;
# docker-compose.yml runs both. docs/containers.md says what is in it, and how to renew the digest.
# Both stages use the same base, so that the virtual environment works.
ARG BASE=python:3.13-slim@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b
FROM ${BASE} AS build

# Nothing is compiled, and only packages with a hash in the requirements are fetched. With
# --build-arg REQUIREMENTS=otel, the image can also send OpenTelemetry traces and metrics; with
# serve, it cannot check JSON Web Tokens.
ARG REQUIREMENTS=jwt
COPY requirements/${REQUIREMENTS}.txt /build/requirements.txt
# The packages' own tests, C sources and type stubs are removed: nothing imports them.
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check \
        --root-user-action=ignore --only-binary=:all: --require-hashes -r /build/requirements.txt \
    && find /opt/venv/lib \( -type d \( -name test -o -name tests \) -o -name '*.[ch]' -o -name '*.pyi' \
        -o -name '*.pyx' -o -name '*.px[di]' \) -prune -exec rm -r {} +

COPY config /app/config
COPY workers /app/workers
COPY chat_service /app/chat_service
COPY clients/python/chat_inbox /app/chat_inbox
# Compile the code here: the file system is read-only later, and each start would compile it again.
RUN python -m compileall -q --invalidation-mode unchecked-hash /app

FROM ${BASE}

LABEL org.opencontainers.image.title="chat-inbox" \
    org.opencontainers.image.description="A chat inbox over HTTP: a message is read once, or it expires" \
    org.opencontainers.image.licenses="MIT"

COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
# PYTHONSAFEPATH: do not import from the current directory.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CHAT_HOST=0.0.0.0
WORKDIR /app

# A numeric id, so that Kubernetes' runAsNonRoot can verify that it is not root. It owns no files.
USER 10001:10001
EXPOSE 8080

# The start period covers CHAT_MONGO_WAIT_S of docker-compose.yml.
HEALTHCHECK --interval=10s --timeout=5s --start-period=130s --retries=3 \
    CMD ["python", "-m", "chat_service", "healthcheck"]

# Python is process 1, so it receives the signal, drains, and exits with 0.
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "chat_service"]
CMD ["serve"]
