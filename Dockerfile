# One image for both roles: `docker run IMAGE coordinator …` and `docker run IMAGE worker …`.
#
#   docker build -t boxlite-server .
#
# It needs no BuildKit. PYTHON names another base: any Debian or Ubuntu with Python 3.11 or newer and its module venv.
ARG PYTHON=python:3.13-slim

FROM ${PYTHON} AS build
RUN python3 -m venv /build
COPY pyproject.toml hatch_build.py README.md LICENSE openapi.yaml worker.proto /source/
COPY boxlite_server /source/boxlite_server
RUN /build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /dist /source
RUN python3 -m venv /opt/boxlite \
    && /opt/boxlite/bin/pip install --no-cache-dir --only-binary :all: "$(echo /dist/*.whl)[postgresql]"

FROM ${PYTHON}
# A worker filters what boxes send by libnftables.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libnftables1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --shell /usr/sbin/nologin --home-dir /var/lib/boxlite --create-home boxlite
COPY --from=build /opt/boxlite /opt/boxlite
COPY deploy/healthcheck.py /opt/boxlite/healthcheck.py
ENV PATH=/opt/boxlite/bin:$PATH PYTHONUNBUFFERED=1 BOXLITE_HOME=/var/lib/boxlite \
    BOXLITE_COORDINATOR_DB=/var/lib/boxlite/coordinator.db

# The coordinator needs no more than this user. A worker runs as root (--user 0), since it has Docker's socket, which is
# root of the host anyway; deploy/compose.yaml has what else it needs.
USER boxlite
VOLUME /var/lib/boxlite
EXPOSE 8200 9100 9101
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s CMD ["/opt/boxlite/bin/python", "/opt/boxlite/healthcheck.py"]
ENTRYPOINT ["boxlite-server"]
CMD ["coordinator", "--host", "0.0.0.0"]
