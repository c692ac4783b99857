# Images of a deployed federation: --target server, and --target client for an edge machine.
#
# Build arguments:
#   TORCH_INDEX    index of wheels that torch is taken from, such as PyTorch's of CPU builds; where
#                  it is empty, the package registry's own, which are CUDA builds on x86-64
#   PIP_INDEX_URL  where all other packages are from; the package registry where it is empty
#   BASE           Python 3.11 on Debian
# Certificates in deploy/extra-ca/ are trusted while packages are fetched, and not shipped.
#
# Packages come before code, and what both images share before what one has, so that a change of
# code copies a few hundred files. The classic builder builds this.

ARG BASE=python:3.11-slim

# What a client needs.
FROM ${BASE} AS packages
COPY deploy/extra-ca/ /usr/local/share/ca-certificates/
RUN update-ca-certificates
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    PIP_NO_CACHE_DIR=1 \
    PIP_NO_COMPILE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/tessera
WORKDIR /build
COPY constraints.txt ./
ARG PIP_INDEX_URL
ARG TORCH_INDEX=
RUN /opt/tessera/bin/pip install --constraint constraints.txt \
    ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
COPY deploy/client.txt ./
RUN /opt/tessera/bin/pip install --constraint constraints.txt --requirement client.txt
# triton is torch.compile's, which Tessera does not use, and brings compilers; headers and static
# libraries are for compilers too. Files for other versions of Python do not compile, and need not.
RUN /opt/tessera/bin/pip uninstall --quiet --yes triton \
    && find /opt/tessera/lib \( -name '*.a' -o -path '*/torch/include' -o -path '*/nvidia/*/include' \) \
    -prune -exec rm -r {} + \
    && { /opt/tessera/bin/python -m compileall -qq -j 0 /opt/tessera/lib || true ; } \
    && printf '/opt/code\n/opt/server\n' \
    > "$(/opt/tessera/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tessera.pth"

# What the server needs besides.
FROM packages AS server-packages
COPY deploy/server.txt ./
RUN /opt/tessera/bin/pip install --constraint constraints.txt --requirement server.txt \
    --prefix /opt/prefix \
    && mv /opt/prefix/lib/python3*/site-packages /opt/server \
    && { /opt/tessera/bin/python -m compileall -qq -j 0 /opt/server || true ; }

# Tessera itself.
FROM packages AS code
COPY . ./
RUN /opt/tessera/bin/pip install --no-deps --no-build-isolation --target /opt/code . \
    && /opt/tessera/bin/python -m compileall -q -j 0 /opt/code

FROM ${BASE} AS runtime
COPY --from=packages /opt/tessera /opt/tessera
ENV PATH=/opt/tessera/bin:/opt/code/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    FLWR_HOME=/tmp/flwr \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 \
    HF_HUB_OFFLINE=1
WORKDIR /tmp
USER 49999:49999

FROM runtime AS server
COPY --from=server-packages /opt/server /opt/server
COPY --from=code /opt/code /opt/code
CMD ["flower-superlink", "--help"]

FROM runtime AS client
COPY --from=code /opt/code /opt/code
CMD ["tessera", "deploy", "client", "--help"]
